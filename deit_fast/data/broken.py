"""Images that cannot be used: those too large to decode, and the one among a batch that DALI refused."""

import io
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deit_fast.data.pipeline import undecodable
from deit_fast.data.source import Source
from deit_fast.errors import DataError

MAX_PIXELS = 178_956_970
"""Largest image taken, pixels: what PIL calls a decompression bomb."""


def check_pixels(source: Source, index: int, encoded: NDArray[np.uint8]) -> tuple[int, int]:
    """Height and width by the image's header, before anything is allocated. Raises DataError beyond MAX_PIXELS."""
    height, width = source.size(index, encoded)
    if height * width > MAX_PIXELS:
        raise DataError(
            f"{source.name(index)}: expected at most {MAX_PIXELS} pixels, its header says {height} x {width}"
        )
    return height, width


def raise_culprit(
    source: Source, indices: NDArray[np.int64], encoded: list[NDArray[np.uint8]], error: RuntimeError
) -> NoReturn:
    """Raise DataError for the first image of the failed batch that cannot be decoded alone, else DALI's own error."""
    for index, data in zip(indices.tolist(), encoded, strict=True):
        reason = _pil_complaint(data)
        if reason or undecodable(data):
            raise DataError(
                f"{source.name(index)}: expected an image that can be decoded ({reason or 'DALI refuses it'})"
            ) from error
    raise error


def _pil_complaint(encoded: NDArray[np.uint8]) -> str:
    """Why PIL cannot decode the image, in its words; empty where it can."""
    try:
        with Image.open(io.BytesIO(encoded.data)) as image:
            image.load()
    except Exception as error:  # PIL's decoders raise what they like
        return " ".join(str(error).split()) or type(error).__name__
    return ""
