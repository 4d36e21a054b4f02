#!/usr/bin/env bash
# DALI 2.4.0: the mean of uint8 pixels is wrong on the CPU where its result is asked for as uint8.
#
# fn.reductions.mean(images) of uint8 gives float32, and the right mean. With dtype=UINT8, which saves a cast where the
# mean of an image is used as a grey value, the sum seems to be kept in 8 bits: it saturates at 255 before it is divided
# by the number of values, so that the mean of anything but a tiny or dark image is 0. Nothing warns.
#
# Output seen (Python 3.11.7, CPU backend), of a constant image of 64 x 64 px:
#   value 100: mean 100.0 as float32, 0 as uint8
#   value 3: mean 3.0 as float32, 0 as uint8
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'nvidia-dali-cuda120==2.4.0' 'numpy==2.3.5'
"$work/venv/bin/python" - <<'PYTHON'
import numpy as np
from nvidia.dali import fn, pipeline_def, types


@pipeline_def(batch_size=1, num_threads=1, device_id=None)
def means(value):
    image = fn.external_source(lambda: [np.full((64, 64, 1), value, np.uint8)], batch=True)
    return fn.reductions.mean(image), fn.reductions.mean(image, dtype=types.UINT8)


seen = {}
for value in (100, 3):
    pipeline = means(value)
    pipeline.build()
    right, short = (np.asarray(each.at(0)).item() for each in pipeline.run())
    print(f"value {value}: mean {right} as float32, {short} as uint8")
    seen[value] = right, short
assert seen == {100: (100.0, 0), 3: (3.0, 0)}, "this DALI behaves otherwise"
PYTHON
