"""What can be known of an encoded image without decoding it."""

import io

import numpy as np
from numpy.typing import NDArray

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0..15 without the tables that share the range
_BARE_MARKERS = frozenset(range(0xD0, 0xD8)) | {0x01}  # markers with no length behind them


def image_size(encoded: NDArray[np.uint8]) -> tuple[int, int]:
    """Height and width in pixels as stored: an EXIF rotation is not applied. Nothing is decoded.

    encoded: the bytes of an image file. JPEG (ITU T.81, annex B) is read here, anything else by PIL.
    Raises ValueError where there is no header to read.
    """
    data = encoded.data
    return _jpeg_size(data) or _pil_size(data)


def _jpeg_size(data: memoryview) -> tuple[int, int] | None:
    """None for anything but a plain JPEG header, such as another format or a height given after the first scan."""
    if data[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _BARE_MARKERS:
            position += 2
        elif marker in _FRAME_MARKERS:
            height, width = (data[at] << 8 | data[at + 1] for at in (position + 5, position + 7))
            return (height, width) if height and width else None
        else:
            position += 2 + (data[position + 2] << 8 | data[position + 3])
    return None


def _pil_size(data: memoryview) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "no image format is like that" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ValueError(f"{len(data)} bytes without a readable image header ({reason})") from None
    return height, width
