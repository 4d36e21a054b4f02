"""Headers of image files: format, size, and whether DALI decodes the file correctly."""

import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from deit_fast.data.sources.pixels import UnknownPixels, check_kind, is_right_in_dali
from deit_fast.runtime.errors import one_line

MAX_PIXELS = 178_956_970
"""The largest image that is accepted, pixels: PIL's limit for decompression bombs."""
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
_BARE_MARKERS = frozenset(range(0xD0, 0xD8)) | {0x01}  # markers that no length follows
_END = b"\xff\xd9"
_ADOBE = b"\xff\xee\x00\x0eAdobe"


class Header(NamedTuple):
    """Header of an image as stored: an EXIF rotation is not applied."""

    height: int
    """Height, pixels."""
    width: int
    """Width, pixels."""
    is_right: bool
    """Whether DALI decodes the file correctly as it is."""


def image_format(encoded: NDArray[np.uint8]) -> str | None:
    """PIL's name of the format, told by the first bytes of encoded uint8 [bytes], whatever the suffix of the file.

    None for a format that is not accepted.
    """
    start = encoded[:8].tobytes()
    return next((name for name, signatures in _SIGNATURES.items() if start.startswith(signatures)), None)


def image_size(encoded: NDArray[np.uint8]) -> tuple[int, int]:
    """Height and width in pixels as stored, from the header of encoded uint8 [bytes]. An EXIF rotation is not applied.

    Nothing is decoded. This module reads the headers of JPEG (ITU T.81, annex B), PIL those of other formats. Raises
    ValueError where there is no readable header, for kinds of images that are refused, and for a JPEG without an end
    marker, of which DALI decodes some windows and not others.
    """
    return read_header(encoded)[:2]


def read_header(encoded: NDArray[np.uint8]) -> Header:
    """The header of encoded uint8 [bytes]. Raises ValueError as `image_size` does."""
    if image_format(encoded) is None:
        raise ValueError(f"{len(encoded)} bytes without a readable image header (no {', '.join(_SIGNATURES)})")
    data = encoded.data
    frame = _jpeg_frame(data)
    if frame is None:
        return _read_pil_header(encoded)
    if data[-2:] != _END and _END not in data[frame:].tobytes():
        raise ValueError(f"{len(data)} bytes of a JPEG whose end is missing")
    height, width = (data[at] << 8 | data[at + 1] for at in (frame + 5, frame + 7))
    bits, components = data[frame + 4], data[frame + 9]
    if bits != 8 or components not in (1, 3, 4):
        raise ValueError(f"a JPEG of {bits} bits and {components} components (expected 8 bits, and 1, 3 or 4)")
    # Adobe's programs store CMYK inverted. PIL assumes this of every CMYK file, DALI only where the file says so.
    return Header(height, width, components < 4 or _ADOBE in data[:frame].tobytes())


def open_image(encoded: NDArray[np.uint8]) -> Image.Image:
    """PIL's image of encoded uint8 [bytes], not yet decoded. Only the parsers of accepted formats are tried.

    Raises what PIL's parsers raise.
    """
    return Image.open(io.BytesIO(encoded.data), formats=tuple(_SIGNATURES))


def _jpeg_frame(data: memoryview) -> int | None:
    """Offset of the frame header; None for anything but a plain JPEG, such as one with the height after its scan."""
    if data[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker in _BARE_MARKERS:
            position += 2
        elif marker in _FRAME_MARKERS:
            sized = any(data[position + 5 : position + 7]) and any(data[position + 7 : position + 9])
            return position if sized else None
        else:
            position += 2 + (data[position + 2] << 8 | data[position + 3])
    return None


def _read_pil_header(data: NDArray[np.uint8]) -> Header:
    try:
        with open_image(data) as image:
            width, height = image.size
            check_kind(image)
            right = is_right_in_dali(image, data)
    except UnknownPixels:
        raise
    except Exception as error:  # PIL's parsers raise many kinds of exceptions
        unknown = "no TIFF that PIL reads is like that" if image_format(data) == "TIFF" else UNIDENTIFIED
        reason = unknown if isinstance(error, UnidentifiedImageError) else one_line(error)
        raise ValueError(f"{len(data)} bytes without a readable image header ({reason})") from None
    if not (height > 0 and width > 0):
        raise ValueError(f"{len(data)} bytes whose header says {height} x {width} pixels")
    return Header(height, width, right)
