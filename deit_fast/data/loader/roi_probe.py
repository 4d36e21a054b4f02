"""Whether this machine's GPU decodes regions of JPEGs soundly: nvImageCodec 0.9.0 crashes there (its issue 55).

A crash takes its process down, so it is tried in one of its own: `python -m deit_fast.data.loader.roi_probe cuda:0`.
"""

import io
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from deit_fast.data.loader.dali import Pipeline, decode_images, decode_window, import_dali, named_window

_BATCH, _BATCHES = 64, 8
_SECONDS = 300.0
_MEAN = 1.0  # of 255: chroma may be upsampled differently along a window's edges


def is_sound(device: torch.device) -> bool:
    """Whether windows of JPEGs decoded alone equal those cut from whole images, tried in a child process.

    A child that crashes or hangs is an answer: False.
    """
    return exits_well([sys.executable, "-m", "deit_fast.data.loader.roi_probe", str(device)])


def exits_well(command: Sequence[str], seconds: float = _SECONDS) -> bool:
    """Whether the command ends with status 0 within `seconds`: no error, no signal, no hanging."""
    try:
        return subprocess.run(command, capture_output=True, timeout=seconds).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def largest_difference(device: torch.device) -> float:
    """The largest mean difference, of 255, between a window decoded alone and the same window of the whole image.

    Some hundred JPEGs of many sizes are tried on the device.
    """
    rng = np.random.default_rng(0)
    encoded, sizes = [], rng.integers(64, 900, (_BATCH * _BATCHES, 2))
    for number, size in enumerate(sizes.tolist()):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        stored = io.BytesIO()
        coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC).save(
            stored, "JPEG", quality=90, subsampling=("4:2:0", "4:4:4")[number % 2]
        )
        encoded.append(np.frombuffer(stored.getvalue(), np.uint8))
    shapes = np.maximum(16, sizes * rng.uniform(0.1, 1, sizes.shape)).astype(np.int32)
    windows = np.concatenate([(rng.uniform(size=sizes.shape) * (sizes - shapes + 1)).astype(np.int32), shapes], axis=1)
    batches = iter([slice(start, start + _BATCH) for start in range(0, len(sizes), _BATCH)])

    def feed() -> list[Any]:
        batch = next(batches)
        return [encoded[batch], windows[batch]]

    def graph(images: Any, parameters: dict[str, Any]) -> Any:
        dali = import_dali()
        fn, types = dali.fn, dali.types
        on_gpu = device.type == "cuda"
        regions = decode_window(images, parameters["window"], on_gpu, region=True)
        cut = fn.slice(decode_images(images, on_gpu), **named_window(parameters["window"]))
        difference = fn.cast(cut, dtype=types.FLOAT) - regions
        return fn.reductions.mean(dali.math.abs(difference), axes=[0, 1, 2], keep_dims=True)

    pipeline = Pipeline(graph, ["window"], feed, _BATCH, device, threads=4)
    return max(float(pipeline.run().max()) for _ in range(_BATCHES))


if __name__ == "__main__":
    sys.exit(largest_difference(torch.device(sys.argv[1])) > _MEAN)
