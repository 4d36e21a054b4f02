"""Files of every kind of pixels, written here from the formats' specifications, with the RGB that they mean.

All show one smooth picture of SIDE x SIDE px. `kinds` yields the files. With each file comes its expected pixels, float
[SIDE, SIDE, 3] on a scale of 0 to 255, or a part of the message with which it has to be refused.
"""

import io
import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 24
Pixels = NDArray[np.number]

_coarse = np.random.default_rng(0).integers(0, 256, (4, 4, 4), np.uint8)
_smooth = [Image.fromarray(_coarse[..., c]).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for c in range(4)]
COLOUR = np.stack([np.asarray(each) for each in _smooth[:3]], axis=-1)
GREY, ALPHA = COLOUR[..., 0], np.asarray(_smooth[3])
DEEP = COLOUR.astype(np.int64) * 257 + np.random.default_rng(1).integers(-90, 90, COLOUR.shape)
DEEP = DEEP.clip(0, 65535).astype(np.uint16)
PALETTE = np.random.default_rng(2).integers(0, 256, (256, 3), np.uint8)


def levels(pixels: Pixels, white: int) -> NDArray[np.int64]:
    return np.rint(pixels / 255 * white).astype(np.int64)


def meant(samples: Pixels, white: float = 255) -> NDArray[np.float64]:
    """The colours that grey or RGB samples mean."""
    rgb = samples if samples.ndim == 3 else np.repeat(samples[..., None], 3, axis=2)
    return rgb / white * 255


def stored(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def by_pil(content: bytes) -> NDArray[np.float64]:
    """For lossy formats, whose oracle is libjpeg or libwebp."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"), np.float64)


def pack(samples: Pixels, bits: int, order: str = ">") -> bytes:
    """Rows of samples [H, n] as bits; each row begins with a new byte."""
    if bits % 8 == 0:
        return samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    parts = ((samples[..., None].astype(int) >> np.arange(bits)[::-1]) & 1).reshape(len(samples), -1)
    return np.packbits(parts, axis=1).tobytes()


# PNM: netpbm's man pages


def pnm(kind: int, samples: Pixels, white: int, comment: bytes = b"") -> bytes:
    head = b"P%d\n%s%d %d\n" % (kind, comment, samples.shape[1], samples.shape[0])
    if kind == 4:
        return head + np.packbits(samples.astype(bool), axis=1).tobytes()
    if kind == 1:
        return head + b"\n".join(b"".join(b"%d" % each for each in row) for row in samples.tolist()) + b"\n"
    head += b"%d\n" % white
    if kind < 4:
        return head + " ".join(map(str, samples.reshape(-1).tolist())).encode() + b"\n"
    return head + samples.astype(">u2" if white > 255 else np.uint8).tobytes()


def pnm_kinds() -> Iterator[tuple[str, bytes, object]]:
    for white in (1, 2, 15, 100, 127, 254, 255, 256, 1023, 4095, 16383, 32767, 65534, 65535):
        grey, colour = levels(GREY, white), levels(COLOUR, white)
        for kind, samples in ((2, grey), (3, colour), (5, grey), (6, colour)):
            yield f"P{kind} of {white}", pnm(kind, samples, white), meant(samples, white)
    black = (GREY < 128).astype(int)
    yield "P1", pnm(1, black, 1), meant(1 - black, 1)
    yield "P4", pnm(4, black, 1), meant(1 - black, 1)
    yield "P2 without a last space", pnm(2, GREY, 255).rstrip(), meant(GREY)
    yield "P5 comment", pnm(5, GREY, 255, b"# 24 24 4095\n"), meant(GREY)
    yield "P5 comment, deep", pnm(5, levels(GREY, 4095), 4095, b"#255\n"), meant(GREY)


# PNG: ISO 15948


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples: Pixels, bits: int, colour_type: int, *chunks: bytes) -> bytes:
    rows = samples.reshape(len(samples), -1).astype(np.uint16 if bits == 16 else np.uint8)
    data = b"".join(b"\0" + pack(row[None], bits) for row in rows)
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, colour_type, 0, 0, 0)
    parts = (chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_kinds() -> Iterator[tuple[str, bytes, object]]:
    for bits in (1, 2, 4, 8, 16):
        grey = levels(GREY, 2**bits - 1)
        yield f"png grey {bits}", png(grey, bits, 0), meant(grey, 2**bits - 1)
        clear = chunk(b"tRNS", struct.pack(">H", int(grey[0, 0])))
        yield f"png grey {bits}, transparent", png(grey, bits, 0, clear), meant(grey, 2**bits - 1)
        if bits < 16:
            colours = chunk(b"PLTE", PALETTE[: 2**bits].tobytes()) + chunk(b"tRNS", b"\0\x80")
            yield f"png palette {bits}", png(grey, bits, 3, colours), meant(PALETTE[grey])
    with_alpha = np.dstack([DEEP, levels(ALPHA, 65535)])
    yield "png deep RGB", png(DEEP, 16, 2), meant(DEEP, 65535)
    yield "png deep RGBA", png(with_alpha, 16, 6), meant(DEEP, 65535)
    yield "png deep grey alpha", png(with_alpha[..., ::3], 16, 4), meant(DEEP[..., 0], 65535)
    yield "png grey alpha", png(np.dstack([GREY, ALPHA]), 8, 4), meant(GREY)
    yield "png RGBA", png(np.dstack([COLOUR, ALPHA]), 8, 6), meant(COLOUR)
    others = {"save_all": True, "append_images": [Image.fromarray(255 - COLOUR), Image.fromarray(COLOUR // 2)]}
    yield "png animated", stored(Image.fromarray(COLOUR), "PNG", **others), meant(COLOUR)
    yield "png default image", stored(Image.fromarray(COLOUR), "PNG", default_image=True, **others), meant(COLOUR)


# BMP: Windows' BITMAPINFOHEADER


def bmp(samples: Pixels, bits: int, *, colours: Pixels | None = None, masks: Sequence[int] = ()) -> bytes:
    rows = samples[::-1].reshape(len(samples), -1)
    data = b"".join(each + bytes(-len(each) % 4) for each in (pack(row[None], bits, "<") for row in rows))
    return bmp_of(data, bits, 3 if masks else 0, colours, masks)


def bmp_of(data: bytes, bits: int, code: int, colours: Pixels | None = None, masks: Sequence[int] = ()) -> bytes:
    extra = struct.pack(f"<{len(masks)}I", *masks)
    if colours is not None:
        extra += np.dstack([colours[None, :, ::-1], np.zeros((1, len(colours), 1))]).astype(np.uint8).tobytes()
    head = struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, bits, code, len(data), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(extra) + len(data), 0, 0, 54 + len(extra)) + head + extra + data


def bmp_kinds() -> Iterator[tuple[str, bytes, object]]:
    for bits in (1, 4, 8):
        index = levels(GREY, 2**bits - 1).astype(np.uint8)
        yield f"bmp palette {bits}", bmp(index, bits, colours=PALETTE[: 2**bits]), meant(PALETTE[index])
    blue_first, nothing = COLOUR[..., ::-1], np.zeros_like(GREY)
    yield "bmp 24", bmp(blue_first, 24), meant(COLOUR)
    yield "bmp 32", bmp(np.dstack([blue_first, ALPHA]), 32), meant(COLOUR)
    masks = (0xFF0000, 0xFF00, 0xFF)
    yield "bmp 32 fields", bmp(np.dstack([blue_first, nothing]), 32, masks=masks), meant(COLOUR)
    masks = (0xFF000000, 0xFF0000, 0xFF00)
    yield "bmp 32 odd fields", bmp(np.dstack([nothing, blue_first]), 32, masks=masks), meant(COLOUR)
    five, six = levels(COLOUR, 31).astype(np.uint16), levels(COLOUR, 63).astype(np.uint16)
    words = five[..., 0] << 10 | five[..., 1] << 5 | five[..., 2]
    yield "bmp 16", bmp(words, 16), meant(five, 31)
    yield "bmp 16 fields", bmp(words, 16, masks=(0x7C00, 0x3E0, 0x1F)), meant(five, 31)
    words = five[..., 0] << 11 | six[..., 1] << 5 | five[..., 2]
    expected = np.dstack([five[..., 0] / 31, six[..., 1] / 63, five[..., 2] / 31]) * 255
    yield "bmp 565", bmp(words, 16, masks=(0xF800, 0x7E0, 0x1F)), expected
    runs = b"".join(b"".join(bytes([1, each]) for each in row) + b"\0\0" for row in GREY[::-1].tolist()) + b"\0\1"
    yield "bmp rle 8", bmp_of(runs, 8, 1, PALETTE), meant(PALETTE[GREY])
    index = levels(GREY, 15)
    runs = b"".join(b"".join(bytes([1, each << 4]) for each in row) + b"\0\0" for row in index[::-1].tolist()) + b"\0\1"
    yield "bmp rle 4", bmp_of(runs, 4, 2, PALETTE[:16]), meant(PALETTE[index])


# JPEG, WebP and what is in neither


def other_kinds() -> Iterator[tuple[str, bytes, object]]:
    colour, rotated = Image.fromarray(COLOUR), Image.Exif()
    rotated[0x0112] = 6
    ink = Image.frombytes("CMYK", colour.size, np.dstack([255 - COLOUR, ALPHA // 2]).tobytes())
    plain, grey = stored(colour, "JPEG", quality=95), stored(Image.fromarray(GREY), "JPEG")
    turned, cmyk = stored(colour, "JPEG", exif=rotated), stored(ink, "JPEG", quality=95)
    adobe = cmyk.index(b"\xff\xee\0\x0eAdobe")
    unnamed = cmyk[:adobe] + cmyk[adobe + 16 :]
    ycck = cmyk[: adobe + 15] + b"\2" + cmyk[adobe + 16 :]
    for name, content in (("", plain), (" grey", grey), (" exif", turned), (" cmyk", cmyk), (" ycck", ycck)):
        yield f"jpeg{name}", content, by_pil(content)
    yield "jpeg cmyk, not Adobe's", unnamed, by_pil(unnamed)
    frame = plain.index(b"\xff\xc0")
    deep = plain[:frame] + b"\xff\xc1" + plain[frame + 2 : frame + 4] + b"\x0c" + plain[frame + 5 :]
    yield "jpeg of 12 bits", deep, "a JPEG of 12 bits"
    veiled = Image.fromarray(np.dstack([COLOUR, ALPHA]))
    for name, image, options in (
        ("", colour, {"quality": 95}), (" lossless", colour, {"lossless": True}),
        (" alpha", veiled, {"lossless": True, "exact": True}), (" alpha, exif", veiled, {"exif": rotated}),
        (" exif", colour, {"exif": rotated}), (" lossless exif", colour, {"lossless": True, "exif": rotated}),
        (" animated", colour, {"lossless": True, "save_all": True, "append_images": [veiled]}),
    ):  # fmt: skip
        content = stored(image, "WEBP", **options)
        yield f"webp{name}", content, by_pil(content)
    odd = next(each for each in _webps_with_exif() if each[34] % 2)  # with a chunk of an odd size before the EXIF chunk
    yield "webp odd exif", odd, by_pil(odd)
    for kind in ("GIF", "JPEG2000"):
        yield kind.lower(), stored(colour, kind), "no JPEG, PNG, BMP"
    pam = b"P7\nWIDTH 24\nHEIGHT 24\nDEPTH 1\nMAXVAL 255\nTUPLTYPE GRAYSCALE\nENDHDR\n" + GREY.tobytes()
    yield "P7", pam, "no JPEG, PNG, BMP"
    yield "Pf", b"Pf\n24 24\n-1.0\n" + (GREY[::-1] / 255).astype("<f4").tobytes(), "no JPEG, PNG, BMP"


def _webps_with_exif() -> Iterator[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    for value in range(256):
        colour = COLOUR.copy()
        colour[0, 0] = value
        yield stored(Image.fromarray(colour), "WEBP", lossless=True, exif=exif)
