"""What can be known of an encoded image without decoding it."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from deit_fast.runtime.errors import one_line

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

UNIDENTIFIED = "no image format is like that"

_SIGNATURES = {
    "JPEG": (b"\xff\xd8",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "BMP": (b"BM",),
    "WEBP": (b"RIFF",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "PPM": (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"),
}
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0..15 without the tables that share the range
_BARE_MARKERS = frozenset(range(0xD0, 0xD8)) | {0x01}  # markers with no length behind them
_END = b"\xff\xd9"


def image_format(encoded: NDArray[np.uint8]) -> str | None:
    """PIL's name of the format that the first bytes are of, whatever the file is called; None for one not taken."""
    start = encoded[:8].tobytes()
    return next((name for name, signatures in _SIGNATURES.items() if start.startswith(signatures)), None)


def image_size(encoded: NDArray[np.uint8]) -> tuple[int, int]:
    """Height and width in pixels as stored: an EXIF rotation is not applied. Nothing is decoded.

    encoded: the bytes of an image file. JPEG (ITU T.81, annex B) is read here, anything else by PIL.
    Raises ValueError where there is no header to read, and for a JPEG without an end: from it DALI decodes some windows
    and not others.
    """
    if image_format(encoded) is None:
        raise ValueError(f"{len(encoded)} bytes without a readable image header (no {', '.join(_SIGNATURES)})")
    data = encoded.data
    frame = _jpeg_frame(data)
    if frame is None:
        return _pil_size(encoded)
    if data[-2:] != _END and _END not in data[frame:].tobytes():
        raise ValueError(f"{len(data)} bytes of a JPEG whose end is missing")
    height, width = (data[at] << 8 | data[at + 1] for at in (frame + 5, frame + 7))
    return height, width


def open_image(encoded: NDArray[np.uint8]) -> Image.Image:
    """PIL's image, not yet decoded, by the parsers of the formats taken alone. Raises what PIL's parsers do."""
    return Image.open(io.BytesIO(encoded.data), formats=tuple(_SIGNATURES))


def _jpeg_frame(data: memoryview) -> int | None:
    """Where the frame header starts; None for anything but a plain JPEG, such as one with the height after its scan."""
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
            sized = any(data[position + 5 : position + 7]) and any(data[position + 7 : position + 9])
            return position if sized else None
        else:
            position += 2 + (data[position + 2] << 8 | data[position + 3])
    return None


def _pil_size(data: NDArray[np.uint8]) -> tuple[int, int]:
    try:
        with open_image(data) as image:
            width, height = image.size
    except Exception as error:  # PIL's parsers raise what they like
        reason = UNIDENTIFIED if isinstance(error, UnidentifiedImageError) else one_line(error)
        raise ValueError(f"{len(data)} bytes without a readable image header ({reason})") from None
    if not (height > 0 and width > 0):
        raise ValueError(f"{len(data)} bytes whose header says {height} x {width} pixels")
    return height, width
