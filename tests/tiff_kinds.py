"""TIFF files of every kind of pixels, written here by TIFF 6.0, for the table of `image_kinds`."""

import struct
from collections.abc import Iterator, Sequence

import numpy as np
import PIL
from PIL import Image

from tests.image_kinds import ALPHA, COLOUR, DEEP, GREY, PALETTE, SIDE, Pixels, levels, meant, pack, stored

PIL_VERSION = int(PIL.__version__.partition(".")[0])
_TYPES = {3: "H", 4: "I"}


def tiff(
    samples: Pixels,
    photometric: int,
    bits: int = 0,
    *,
    order: str = "<",
    kind: int = 1,
    apart: bool = False,
    tile: int = 0,
    rows: int = SIDE,
    tags: Sequence[tuple[int, int, list[int]]] = (),
) -> bytes:
    """Samples [H, W] or [H, W, C]. kind: 1 unsigned, 2 signed, 3 floating-point. apart: a plane for each channel."""
    pixels = np.atleast_3d(samples)
    height, width, channels = pixels.shape
    bits = bits or pixels.itemsize * 8
    planes = [pixels[..., channel : channel + 1] for channel in range(channels)] if apart else [pixels]
    if tile:
        padded = [np.pad(each, ((0, -height % tile), (0, -width % tile), (0, 0))) for each in planes]
        starts = [(y, x) for y in range(0, height, tile) for x in range(0, width, tile)]
        parts = [plane[y : y + tile, x : x + tile] for plane in padded for y, x in starts]
    else:
        parts = [plane[y : y + rows] for plane in planes for y in range(0, height, rows)]
    packed = [pack(part.reshape(len(part), -1), bits, order) for part in parts]
    places = (8 + np.cumsum([0, *map(len, packed)])).tolist()
    entries = [
        (256, 4, [width]), (257, 4, [height]), (258, 3, [bits] * channels), (259, 3, [1]), (262, 3, [photometric]),
        (324 if tile else 273, 4, places[:-1]), (277, 3, [channels]), (325 if tile else 279, 4, list(map(len, packed))),
        (284, 3, [2 if apart else 1]), (339, 3, [kind] * channels), *tags,
        *([(322, 4, [tile]), (323, 4, [tile])] if tile else [(278, 4, [rows])]),
    ]  # fmt: skip
    directory, behind = struct.pack(order + "H", len(entries)), b""
    free = places[-1] + 2 + 12 * len(entries) + 4
    for tag, code, values in sorted(entries):
        data = struct.pack(f"{order}{len(values)}{_TYPES[code]}", *values)
        if len(data) > 4:
            data, behind = struct.pack(order + "I", free + len(behind)), behind + data
        directory += struct.pack(order + "HHI", tag, code, len(values)) + data.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", places[-1])
    return head + b"".join(packed) + directory + bytes(4) + behind


def tiff_kinds() -> Iterator[tuple[str, bytes, object]]:
    veiled, veiled_grey = np.dstack([COLOUR, ALPHA]), np.dstack([GREY, ALPHA])
    deep_grey, ink = DEEP[..., 0], np.dstack([255 - COLOUR, np.zeros_like(ALPHA)])
    for order in "<>":
        yield f"tiff grey {order}", tiff(GREY, 1, order=order), meant(GREY)
        yield f"tiff deep grey {order}", tiff(deep_grey, 1, order=order), meant(deep_grey, 65535)
        yield f"tiff deep RGB {order}", tiff(DEEP, 2, order=order), meant(DEEP, 65535)
    yield "tiff deep tiles", tiff(deep_grey, 1, tile=16), meant(deep_grey, 65535)
    yield "tiff tiles", tiff(COLOUR, 2, tile=16), meant(COLOUR)
    yield "tiff strips", tiff(COLOUR, 2, rows=5), meant(COLOUR)
    for bits in (1, 2, 4):
        grey = levels(GREY, 2**bits - 1)
        yield f"tiff grey {bits}", tiff(grey, 1, bits), meant(grey, 2**bits - 1)
        yield f"tiff white is 0, {bits}", tiff(grey.max() - grey, 0, bits), meant(grey, 2**bits - 1)
        table = [(320, 3, (PALETTE[: 2**bits].T.astype(int) * 257).reshape(-1).tolist())]
        yield f"tiff palette {bits}", tiff(grey, 3, bits, tags=table), meant(PALETTE[grey])
    bilevel = levels(GREY, 1)
    yield "tiff bilevel, by PIL", stored(Image.fromarray(bilevel == 1), "TIFF"), meant(bilevel, 1)  # without tag 258
    yield "tiff bilevel tiles", tiff(bilevel, 1, 1, tile=16), meant(bilevel, 1)
    yield "tiff white is 0, 8", tiff(255 - GREY, 0), meant(GREY)
    yield "tiff white is 0, tiles", tiff(255 - GREY, 0, tile=16), meant(GREY)
    yield "tiff white is 0, 16", tiff(65535 - deep_grey, 0), "a TIFF of 16 bits whose white is 0"
    table = [(320, 3, (PALETTE.T.astype(int) * 257).reshape(-1).tolist())]
    yield "tiff palette 8", tiff(GREY, 3, tags=table), meant(PALETTE[GREY])
    yield "tiff palette alpha", tiff(veiled_grey, 3, tags=[(338, 3, [2]), *table]), meant(PALETTE[GREY])
    table = [(320, 3, PALETTE.T.astype(int).reshape(-1).tolist())]
    yield "tiff palette of bytes", tiff(GREY, 3, tags=table), "whose colour map has 8 bits"
    for meaning in (0, 2):
        extra = [(338, 3, [meaning])]
        if meaning or PIL_VERSION >= 13:  # earlier versions of PIL cannot read it
            yield f"tiff grey alpha {meaning}", tiff(veiled_grey, 1, tags=extra), meant(GREY)
            yield f"tiff grey alpha {meaning}, tiles", tiff(veiled_grey, 1, tags=extra, tile=16), meant(GREY)
        yield f"tiff RGB alpha {meaning}", tiff(veiled, 2, tags=extra), meant(COLOUR)
    alpha = np.maximum(ALPHA, 200)
    over_black = np.dstack([np.rint(COLOUR * (alpha[..., None] / 255)).astype(np.uint8), alpha])
    yield "tiff RGB on alpha", tiff(over_black, 2, tags=[(338, 3, [1])]), meant(COLOUR)
    yield "tiff RGB and 2", tiff(np.dstack([veiled, ALPHA]), 2, tags=[(338, 3, [0, 0])]), meant(COLOUR)
    yield "tiff planes", tiff(COLOUR, 2, apart=True), meant(COLOUR)
    yield "tiff planes in tiles", tiff(COLOUR, 2, apart=True, tile=16), meant(COLOUR)
    yield "tiff planes alpha", tiff(veiled, 2, apart=True, tags=[(338, 3, [2])]), meant(COLOUR)
    yield "tiff deep planes", tiff(DEEP, 2, apart=True), "a TIFF of 16 bits whose channels are stored apart"
    yield "tiff cmyk", tiff(ink, 5), meant(COLOUR)
    yield "tiff deep cmyk", tiff(np.dstack([65535 - DEEP, np.zeros_like(deep_grey)]), 5), meant(DEEP, 65535)
    yield "tiff ycbcr", tiff(COLOUR, 6, tags=[(530, 3, [2, 2])]), "a TIFF of subsampled YCbCr"
    yield "tiff lab", tiff(COLOUR, 8), "pixels of PIL's mode LAB"
    for name, dtype, kind, white in (
        ("float", "f4", 3, 255), ("unit float", "f4", 3, 1), ("signed", "i2", 2, 32767), ("signed", "i1", 2, 127),
        ("signed", "i4", 2, 2**31 - 1),
    ):  # fmt: skip
        bits = f"{np.dtype(dtype).itemsize * 8} bits"
        refusal = f"a TIFF of {'floating-point' if kind == 3 else 'signed'} samples of {bits}"
        yield f"tiff {name} {dtype}", tiff((GREY / 255 * white).astype(dtype), 1, kind=kind), refusal
    yield "tiff float RGB", tiff(np.float32(COLOUR / 255), 2, kind=3), "no TIFF that PIL reads is like that"
    yield "tiff 32 bits", tiff(GREY.astype(np.uint32), 1), "a TIFF of unsigned samples of 32 bits"
    yield "tiff 12 bits", tiff(levels(GREY, 4095), 1, 12), "a TIFF of unsigned samples of 12 bits"
    for turn in range(2, 9):
        shown = Image.fromarray(COLOUR)
        for step in _TURNS[turn]:
            shown = shown.transpose(step)
        yield f"tiff orientation {turn}", tiff(COLOUR, 2, tags=[(274, 3, [turn])]), meant(np.asarray(shown))
    colour = Image.fromarray(COLOUR)
    pages = {"save_all": True, "append_images": [Image.fromarray(255 - GREY[:9, :9])]}
    yield "tiff pages", stored(colour, "TIFF", **pages), meant(COLOUR)
    for code in ("tiff_lzw", "packbits", "tiff_adobe_deflate", "tiff_deflate", "lzma"):
        yield f"tiff {code}", stored(colour, "TIFF", compression=code), meant(COLOUR)
    yield "tiff group 4", stored(Image.fromarray(bilevel.astype(bool)), "TIFF", compression="group4"), meant(bilevel, 1)


# The transposition for each orientation in a file (TIFF 6.0, page 36) that restores the picture.
_FLIP, _DOWN, _MAIN = Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSPOSE
_TURNS = {
    2: [_FLIP], 3: [_FLIP, _DOWN], 4: [_DOWN], 5: [_MAIN], 6: [_MAIN, _FLIP], 7: [_MAIN, _FLIP, _DOWN],
    8: [_MAIN, _DOWN],
}  # fmt: skip
