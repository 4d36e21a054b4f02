"""The meaning of pixels: converts every kind of image to 8-bit RGB, and knows the kinds that DALI decodes wrongly.

The rules are the same for files, PIL images and arrays: white is 255; 16-bit samples are divided by 257 and rounded;
grey becomes three equal channels; alpha is dropped. An image whose white level is unknown (floats, signed or 32-bit
samples) is refused. DALI decodes the files that nvImageCodec 0.9 in DALI 2.4 is known to decode to these pixels; PIL
decodes the others.
"""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_RGB_MODES = ("1", "L", "LA", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")
_STEPS = {"La": "LA", "RGBa": "RGBA", "P": "RGBA"}
"""PIL modes that are converted to RGB through another mode, because of premultiplied alpha or transparent colours."""
_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_DEEP_FORMATS = ("PNG", "PPM")
"""Formats whose 16-bit grey images PIL may open as mode I, with values up to 65535."""

_MASKS = np.array([0xFF0000, 0xFF00, 0xFF], "<u4").tobytes()  # masks of red, green and blue in a 32-bit BMP
_PNM = re.compile(rb"P[2356](?:\s|#[^\r\n]*[\r\n])+\d+(?:\s|#[^\r\n]*[\r\n])+\d+(?:\s|#[^\r\n]*[\r\n])+(\d+)\s")
_WEBP_EXIF = 0x08  # a flag in byte 20 of an extended WebP

# TIFF 6.0: photometric interpretations, compressions and values of other tags.
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_JPEG = 7
_UNSIGNED, _CHUNKY, _UPRIGHT, _ASSOCIATED_ALPHA = 1, 1, 1, 1
_SAMPLE_KINDS = {2: "signed", 3: "floating-point", 4: "undefined", 5: "complex", 6: "complex"}

_DALI_TIFF = frozenset(
    {(_WHITE_IS_ZERO, 1, 1), (_WHITE_IS_ZERO, 1, 8), (_BLACK_IS_ZERO, 1, 1), (_BLACK_IS_ZERO, 1, 8),
     (_BLACK_IS_ZERO, 1, 16), (_RGB, 3, 8), (_RGB, 3, 16), (_RGB, 4, 8), (_RGB, 4, 16), (_PALETTE, 1, 8),
     (_CMYK, 4, 8), (_YCBCR, 3, 8)}
)  # fmt: skip
"""(photometric interpretation, samples per pixel, bits per sample) of the TIFFs that DALI decodes as PIL does."""
_NEEDED_TAGS = {258, 262, 277}
"""Tags that have a default (bits, photometric interpretation, samples), but without which DALI reads no TIFF."""
_DALI_COMPRESSIONS = (1, 2, 3, 4, 5, _JPEG, 8, 32773, 32946, 50000)


class UnknownPixels(ValueError):
    """An image of a kind whose samples' meaning in colours is unknown; the text says what was found."""


def check_kind(image: Image.Image) -> None:
    """Raise UnknownPixels for a kind of image that is refused. The image may be decoded or not."""
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        _check_tiff(tags)
    deep = image.mode == "I" and image.format in _DEEP_FORMATS
    if not (deep or image.mode in _RGB_MODES or image.mode in _STEPS or image.mode in _DEEP_MODES):
        raise UnknownPixels(
            f"pixels of PIL's mode {image.mode}, of which white is not known (expected 8 or 16 bits per sample; "
            "convert them to RGB, L or I;16)"
        )


def as_rgb(image: Image.Image) -> Image.Image:
    """The image as 8-bit RGB. Raises UnknownPixels for kinds that are refused, and what PIL's decoders raise."""
    check_kind(image)
    if image.mode == "I" or image.mode in _DEEP_MODES:
        return Image.fromarray(array_as_rgb(np.asarray(image).astype(np.uint16)))
    return image.convert(_STEPS.get(image.mode, "RGB")).convert("RGB")


def check_array(array: NDArray[Any]) -> None:
    """Raise UnknownPixels for an array that `array_as_rgb` refuses."""
    shape = array.ndim == 2 or (array.ndim == 3 and 1 <= array.shape[2] <= 4)
    if array.dtype.kind + str(array.dtype.itemsize) not in ("b1", "u1", "u2") or not shape or not array.size:
        raise UnknownPixels(
            f"expected uint8 [H, W, 3] or [H, W], got {array.dtype} {list(array.shape)} "
            "(also taken: uint16, of which white is 65535, bool, and 1 to 4 channels)"
        )


def array_as_rgb(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Pixels bool, uint8 or uint16 [H, W] or [H, W, C] as uint8 [H, W, 3].

    C: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.
    """
    pixels = np.atleast_3d(array)
    if array.dtype.kind == "b":
        pixels = pixels * np.uint8(255)
    elif array.dtype.itemsize == 2:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    colours = pixels[..., :3] if pixels.shape[2] > 2 else np.repeat(pixels[..., :1], 3, axis=2)
    return np.ascontiguousarray(colours)


def as_ppm(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels uint8 [H, W, 3] as a PPM file, uint8 [bytes], without loss."""
    header = np.frombuffer(b"P6\n%d %d\n255\n" % (pixels.shape[1], pixels.shape[0]), np.uint8)
    return np.concatenate((header, pixels.reshape(-1)))


def is_right_in_dali(image: Image.Image, encoded: NDArray[np.uint8]) -> bool:
    """Whether DALI is known to decode the file, encoded uint8 [bytes], to the pixels of `as_rgb`, within one level.

    image: PIL's image of the file, not yet decoded.
    """
    start = encoded[:66].tobytes()
    if image.format == "TIFF":
        return _is_tiff_right(image.tag_v2)  # type: ignore[attr-defined]
    if image.format == "BMP":
        return _is_bmp_right(start)
    if image.format == "PPM":
        header = _PNM.match(encoded.data)
        ends = start[:2] not in (b"P2", b"P3") or encoded[-1:].tobytes().isspace()  # DALI fails at a final digit
        return start[:2] == b"P4" or (header is not None and int(header[1]) in (255, 65535) and ends)
    if image.format == "WEBP":  # nvImageCodec ignores an odd chunk's padding and then misses the EXIF chunk
        return start[12:16] != b"VP8X" or not start[20] & _WEBP_EXIF
    if image.format == "PNG":  # DALI returns a frame of an animation without a default image
        return not getattr(image, "default_image", False)
    return image.mode != "CMYK" or "adobe" in image.info


def as_decodable(encoded: NDArray[np.uint8], image: Image.Image) -> NDArray[np.uint8]:
    """Converts a file that DALI decodes wrongly to one that DALI decodes correctly: uint8 [bytes].

    image: PIL's image of the file, not yet decoded. Raises what `as_rgb` raises.
    """
    if image.format == "WEBP":
        plain = encoded.copy()
        plain[20] &= ~np.uint8(_WEBP_EXIF)
        return plain
    return as_ppm(np.asarray(as_rgb(image)))


def _check_tiff(tags: Any) -> None:
    """Raise UnknownPixels for a TIFF that PIL opens, but does not decode to the pixels that the tags describe."""
    photometric, bits, kinds = tags.get(262, _WHITE_IS_ZERO), set(tags.get(258, (1,))), set(tags.get(339, (_UNSIGNED,)))
    if kinds != {_UNSIGNED} or not bits <= {1, 2, 4, 8, 16} or len(bits) > 1:
        kind = next((_SAMPLE_KINDS[each] for each in sorted(kinds) if each in _SAMPLE_KINDS), "unsigned")
        found = f"{kind} samples of {' and '.join(map(str, sorted(bits)))} bits"
        raise UnknownPixels(f"a TIFF of {found} (expected unsigned ones of 1, 2, 4, 8 or 16 bits)")
    if photometric == _WHITE_IS_ZERO and bits == {16}:
        raise UnknownPixels("a TIFF of 16 bits whose white is 0 (expected black to be 0)")
    if tags.get(284, _CHUNKY) != _CHUNKY and bits == {16}:
        raise UnknownPixels("a TIFF of 16 bits whose channels are stored apart (expected them pixel by pixel)")
    if photometric == _YCBCR and tags.get(259, 1) != _JPEG and tuple(tags.get(530, (2, 2))) != (1, 1):
        raise UnknownPixels("a TIFF of subsampled YCbCr without JPEG's compression (expected RGB)")
    if photometric == _PALETTE and max(tags.get(320, (0,))) < 256:
        raise UnknownPixels("a TIFF whose colour map has 8 bits or is black (expected 16 bits)")


def _is_tiff_right(tags: Any) -> bool:
    photometric, samples, bits = tags.get(262, _WHITE_IS_ZERO), tags.get(277, 1), tags.get(258, (1,))[0]
    tiled, apart = 322 in tags, tags.get(284, _CHUNKY) != _CHUNKY
    compression = tags.get(259, 1)
    return (
        tags.keys() >= _NEEDED_TAGS
        and (photometric, samples, bits) in _DALI_TIFF
        and compression in _DALI_COMPRESSIONS
        and (photometric != _YCBCR or compression == _JPEG)
        and (not tiled or (photometric in (_BLACK_IS_ZERO, _RGB) and bits >= 8))
        and (not apart or (photometric == _RGB and samples == 3 and bits == 8 and not tiled))
        and _ASSOCIATED_ALPHA not in tags.get(338, ())
        and tags.get(274, _UPRIGHT) == _UPRIGHT
    )


def _is_bmp_right(start: bytes) -> bool:
    """Whether DALI decodes a BMP correctly, by its first 66 bytes: no run lengths, fields in the usual order."""
    bits, compression = int.from_bytes(start[28:30], "little"), int.from_bytes(start[30:34], "little")
    if start[14] == 12:  # OS/2
        bits, compression = int.from_bytes(start[24:26], "little"), 0
    if compression == 3:
        return bits == 32 and start[54:66] == _MASKS
    return compression == 0 and bits in (1, 4, 8, 24, 32)
