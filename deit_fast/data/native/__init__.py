"""Views made of decoded images by one call per batch into C: resize, crop, flip, policy and jitter, as PIL does them.

In: decoded images uint8 [H, W, 3] and a row of VIEW for each view. Out: uint8 [B, S, S, 3]. views.h has an overview.
The library is built with the package where there is a C compiler (setup.py); where it is absent, DALI's graph makes the
pixels. It needs no Python and no other library.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

WINDOW_FIRST, REFLECTED, BLACK = range(3)
"""Meanings of `geometry`: a window of the image, or of the resized image with a reflected or a black border."""

VIEW = np.dtype(
    [
        ("image", np.int32),
        ("geometry", np.int32, 4),
        ("kernel", np.int32),
        ("flip", np.int32),
        ("operation", np.int32),
        ("sigma", np.float32),
        ("order", np.int32, 3),
        ("factors", np.float32, 3),
    ]
)
"""`struct view` of views.h: the parameters of a view, and the index of its image in the batch."""


OPERATIONS = ("skip", "auto_contrast", "equalize", "change_values", "enhance", "sharpen", "warp")
"""A policy's functions by their numbers, operations.c's enum."""


class _Image(ctypes.Structure):
    _fields_ = [("pixels", ctypes.c_void_p), ("height", ctypes.c_int32), ("width", ctypes.c_int32)]


class _Policy(ctypes.Structure):
    _fields_ = [
        ("count", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("operations", ctypes.c_void_p),
        ("arguments", ctypes.c_void_p),
    ]


@cache
def library() -> Any:
    """The loaded library; None where the package was built without a C compiler, or for another machine."""
    for path in Path(__file__).parent.glob("_views*.so"):
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            continue
    return None


def make_views(
    images: Sequence[NDArray[np.uint8]],
    views: NDArray[Any],
    border: int,
    image_size: int,
    threads: int,
    out: NDArray[np.uint8],
    operations: NDArray[np.int32] | None = None,
    arguments: NDArray[np.float32] | None = None,
) -> None:
    """Writes B views of images, uint8 [H, W, 3] each, to `out`, uint8 [B, S, S, 3].

    views: VIEW [B]. border: how to read their geometry. operations [B, n] and arguments [B, n, A]: of a policy, as
    `policy_graph` computes them. The number of threads changes no pixel. Raises MemoryError.
    """
    held = [np.ascontiguousarray(image) for image in images]
    table = (_Image * len(held))(*[_Image(image.ctypes.data, *image.shape[:2]) for image in held])
    policy = _Policy()
    if operations is not None and arguments is not None:
        operations, arguments = np.ascontiguousarray(operations), np.ascontiguousarray(arguments)
        policy = _Policy(*arguments.shape[1:], operations.ctypes.data, arguments.ctypes.data)
    place = ctypes.c_void_p(views.ctypes.data), ctypes.byref(policy), len(views), border, image_size
    if library().deit_fast_make_views(table, *place, ctypes.c_void_p(out.ctypes.data), threads):
        raise MemoryError(f"{len(views)} views of {image_size} px")
