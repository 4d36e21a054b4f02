#!/usr/bin/env bash
# DALI 2.4.0 (CPU backend): fn.decoders.image takes the white of a PGM or PPM file to be 255 or 65535, whatever the file's
# header says, and raises no error.
#
# The format's maxval is the sample that means white (netpbm: pgm(5), ppm(5)). PIL scales by it. DALI hands samples of
# one byte on as they are, and divides samples of two bytes by 256: the white of a file of 4 bits (maxval 15) and of one
# of 12 bits (4095, as cameras and medical devices write) are both 15 of 255, which is nearly black.
#
# Output seen:
#   DALI 2.4.0
#   maxval   DALI             expected
#      255   [0, 127, 255]    [0, 127, 255]
#       15   [0, 7, 15]       [0, 119, 255]
#      100   [0, 50, 100]     [0, 128, 255]
#     4095   [0, 7, 15]       [0, 127, 255]
#    65535   [0, 127, 255]    [0, 127, 255]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'nvidia-dali-cuda120==2.4.0' 'numpy==2.2.6'
cat >"$work/maxval.py" <<'PYTHON'
import numpy as np
import nvidia.dali as dali
from nvidia.dali import fn, pipeline_def, types


def decode(file):
    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def graph():
        encoded = fn.external_source(source=lambda: [np.frombuffer(file, np.uint8)], dtype=types.UINT8)
        return fn.decoders.image(encoded, device="cpu", output_type=types.RGB)

    pipeline = graph()
    pipeline.build()
    return np.asarray(pipeline.run()[0].as_cpu()[0])[0, :, 0].tolist()


print("DALI", dali.__version__)
print("maxval   DALI             expected")
found = {}
for maxval in (255, 15, 100, 4095, 65535):
    samples = np.array([0, maxval // 2, maxval])
    file = b"P5 3 1 %d\n" % maxval + samples.astype(">u2" if maxval > 255 else "u1").tobytes()
    expected = (samples * 255 / maxval + 0.5).astype(int).tolist()
    found[maxval] = decode(file)
    print(f"{maxval:6}   {str(found[maxval]):<16} {expected}")
assert found[255] == [0, 127, 255] and found[65535] == [0, 127, 255], "changed"
assert found[15] == [0, 7, 15] and found[100] == [0, 50, 100] and found[4095] == [0, 7, 15], "changed: maxval is read"
PYTHON
"$work/venv/bin/python" "$work/maxval.py"
