"""Files made to break a reader: bombs, pipes, odd names, random damage; and every format, as PIL reads it."""

import io
import os
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from deit_fast.data.loader.pipeline import eval_pipeline
from deit_fast.data.sources.base import read_bytes
from deit_fast.data.sources.headers import image_format, image_size
from deit_fast.data.sources.open import open_source
from deit_fast.data.sources.shard_listing import Listing
from deit_fast.runtime.errors import DataError, printable
from tests.hostile import Memory, check_shard, check_training
from tests.image_files import encode, refused, write, write_tar
from tests.views import photograph

SIDE = 64
CPU = torch.device("cpu")


def stored(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.copy().save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), *chunks, (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


# Formats


def pictures() -> dict[str, bytes]:
    colour = photograph(1, SIDE, SIDE)
    grey, few = colour.convert("L"), colour.quantize(64)
    veiled = colour.convert("RGBA")
    veiled.putalpha(grey)
    veiled_grey = grey.convert("LA")
    veiled_grey.putalpha(grey)
    exif = Image.Exif()
    exif[0x0112] = 6

    def turned() -> dict[str, object]:  # a new one each time: saving leaves settings in an image
        return {"save_all": True, "append_images": [colour.rotate(90)]}

    return {
        "jpeg": stored(colour, "JPEG"),
        "jpeg grey": stored(grey, "JPEG"),
        "jpeg cmyk": stored(colour.convert("CMYK"), "JPEG"),
        "jpeg progressive": stored(colour, "JPEG", progressive=True),
        "jpeg exif": stored(colour, "JPEG", exif=exif),
        "jpeg of several": stored(colour, "MPO", **turned()),
        "png grey": stored(grey, "PNG"),
        "png bits": stored(colour.convert("1"), "PNG"),
        "png palette": stored(few, "PNG"),
        "png palette, transparent": stored(few, "PNG", transparency=3),
        "png alpha": stored(veiled, "PNG"),
        "png grey alpha": stored(veiled_grey, "PNG"),
        "png exif": stored(colour, "PNG", exif=exif),
        "png animated": stored(colour, "PNG", **turned()),
        "bmp": stored(colour, "BMP"),
        "bmp palette": stored(few, "BMP"),
        "bmp bits": stored(colour.convert("1"), "BMP"),
        "bmp alpha": stored(veiled, "BMP"),
        "webp": stored(colour, "WEBP"),
        "webp alpha": stored(veiled, "WEBP", lossless=True, exact=True),
        "webp animated": stored(colour, "WEBP", lossless=True, **turned()),
        "tiff lzw": stored(colour, "TIFF", compression="tiff_lzw"),
        "tiff cmyk": stored(colour.convert("CMYK"), "TIFF"),
        "tiff alpha": stored(veiled, "TIFF"),
        "tiff pages": stored(colour, "TIFF", **turned()),
        "ppm": stored(colour, "PPM"),
        "pbm": stored(colour.convert("1"), "PPM"),
    }


def test_every_format_is_read_as_pil_reads_it() -> None:
    contents = pictures()
    encoded = [np.frombuffer(content, np.uint8) for content in contents.values()]
    assert [image_size(each) for each in encoded] == [(SIDE, SIDE)] * len(encoded)
    whole = np.tile(np.int32([SIDE, SIDE, 0, 0]), (len(encoded), 1))
    images = eval_pipeline(SIDE, lambda: [encoded, whole], len(encoded), CPU, threads=1).run()
    for (name, content), pixels in zip(contents.items(), images.permute(0, 2, 3, 1).numpy(), strict=True):
        with Image.open(io.BytesIO(content)) as image:
            np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")), err_msg=name)


def test_16_bit_images_are_scaled_where_pil_clips_them() -> None:
    levels = np.asarray(photograph(1, SIDE, SIDE).convert("L"))
    deep = np.frombuffer(stored(Image.fromarray(levels.astype(np.uint16) * 257), "PNG"), np.uint8)
    whole = np.int32([[SIDE, SIDE, 0, 0]])
    pixels = eval_pipeline(SIDE, lambda: [[deep], whole], 1, CPU, threads=1).run()[0]
    np.testing.assert_array_equal(pixels.numpy(), np.broadcast_to(levels, (3, SIDE, SIDE)))


def test_formats_are_told_by_content() -> None:
    names = {"jpeg": "JPEG", "png": "PNG", "bmp": "BMP", "webp": "WEBP", "tiff": "TIFF", "ppm": "PPM", "pbm": "PPM"}
    for name, content in pictures().items():
        assert image_format(np.frombuffer(content, np.uint8)) == names[name.split()[0]]
    gif = stored(Image.new("RGB", (9, 9)), "GIF")
    for content in (gif, b"", b"\xff", b"%!PS-Adobe", b"\0" * 100):
        assert image_format(np.frombuffer(content, np.uint8)) is None


# Bombs


def bombs() -> dict[str, bytes]:
    zeros = zlib.compress(bytes(50 * 2**20), 9)
    jpeg = bytearray(encode())
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = (60000).to_bytes(2, "big") * 2
    webp = bytearray(stored(Image.new("RGB", (9, 9)), "WEBP", lossless=True))
    webp[21:25] = (int.from_bytes(webp[21:25], "little") | (1 << 28) - 1).to_bytes(4, "little")  # 16384 x 16384
    small = stored(Image.new("L", (20000, 1)), "TIFF")
    tall = small.replace(struct.pack("<HHII", 257, 4, 1, 1), struct.pack("<HHII", 257, 4, 1, 20000))
    return {
        "jpeg": bytes(jpeg),
        "png": png(60_000, 60_000, (b"IDAT", zeros)),
        "png text": png(10, 10, (b"zTXt", b"a\0\0" + zeros)),
        "png profile": png(10, 10, (b"iCCP", b"a\0\0" + zeros)),
        "webp": bytes(webp),
        "tiff": tall,
        "bmp": b"BM" + struct.pack("<IIIIiiHHIIIIII", 60, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "ppm": b"P6 60000 60000 255\n" + bytes(100),
    }


@pytest.mark.parametrize(("name", "content"), bombs().items(), ids=bombs())
def test_bombs_cost_next_to_nothing(name: str, content: bytes) -> None:
    source = Memory([content])
    encoded = source.read(0)
    before, start = resident(), time.thread_time()
    try:
        size: object = source.header(0, encoded)[:2]
    except DataError as error:
        size = str(error)
    # What hides in a side chunk is a small image to everybody who does not unpack it.
    assert size == (10, 10) or str(size).startswith(r"image\n000.jpg: expected")
    assert size != (10, 10) or name.startswith("png ")
    assert time.thread_time() - start < 5  # unpacked, each of them takes minutes or gigabytes
    assert resident() - before < 64 * 2**20


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# Files that are none, and names


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: os.mkfifo(path), "expected a readable file"),
        (lambda path: path.symlink_to("nowhere"), "expected a readable file (No such file or directory)"),
        (lambda path: path.symlink_to(path), "expected a readable file"),
        (lambda path: path.symlink_to("/dev/zero"), "found 0 bytes"),
        (lambda path: os.truncate(write(path, b""), 2**40), "expected at most 1073741824 bytes"),
    ],
    ids=["pipe", "dangling", "loop", "device", "sparse"],
)
def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    write(tmp_path / "class" / "a.jpg", encode())
    make(tmp_path / "class" / "b.jpg")
    source = open_source(str(tmp_path))
    with pytest.raises(DataError) as error:
        source.header(1, source.read(1))
    assert message in str(error.value)


def test_a_directory_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(DataError, match=r"a\.jpg: expected a readable file \(Is a directory\)"):
        read_bytes(str(tmp_path / "a.jpg"))


ODD = [b"two words", b"new\nline", b"tab\t", b"\xff\xfe", b"caf\xe9", "größe".encode(), b"a\\b", b"quote'\""]


def test_odd_names_in_folders_are_read_and_printed_in_a_line(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/cl\xffass/"
    os.mkdir(folder)
    for number, name in enumerate(sorted(ODD)):
        with open(folder + name + b".jpg", "wb") as file:
            file.write(encode(10 + number))
    source = open_source(str(tmp_path))
    assert sorted(source.header(index, source.read(index))[0] for index in range(len(ODD))) == list(range(10, 18))
    for index in range(len(ODD)):
        assert os.path.exists(source.name(index))
        assert printable(source.name(index)).isprintable()
    assert len({printable(source.name(index)) for index in range(len(ODD))}) == len(ODD)


@pytest.mark.usefixtures("cache")
def test_odd_names_in_shards(tmp_path: Path) -> None:
    members = {}
    for number, name in enumerate(ODD):
        key = name.decode("utf-8", "surrogateescape")
        members |= {f"{key}.jpg": encode(10 + number), f"{key}.cls": b"%d" % number}
    source = open_source(str(write_tar(tmp_path / "a.tar", members)))
    assert source.labels.tolist() == list(range(len(ODD)))
    for index in range(len(ODD)):
        assert source.header(index, source.read(index))[0] == 10 + index
        assert printable(source.name(index)).isprintable()


@given(st.text(alphabet=st.characters(), max_size=30))
def test_printable_is_one_line_of_utf8(name: str) -> None:
    text = printable(name.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape"))
    assert text.isprintable()
    text.encode()


# Damage


SOUND = [encode(40, 33), encode(40, 33, progressive=True), encode(40, 33, "PNG"), encode(40, 33, "WEBP")]
SOUND += [encode(40, 33, "TIFF"), encode(40, 33, "BMP")]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of metadata that is damaged too
@settings(deadline=None, max_examples=300)
@given(st.sampled_from(SOUND), st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255))), st.integers(0, 9000))
def test_headers_of_damaged_images_cost_a_line_at_most(content: bytes, flips: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(content[:cut])
    for place, value in flips:
        if place < len(data):
            data[place] = value
    try:
        size = image_size(np.frombuffer(bytes(data), np.uint8))
    except ValueError:
        return
    assert min(size) > 0


@pytest.mark.parametrize("seed", range(3))
def test_fuzzed_images(seed: int) -> None:
    assert check_training(seed)["bad"] > 10


def test_fuzzed_shards(tmp_path: Path) -> None:
    outcomes = [check_shard(seed, tmp_path) for seed in range(100)]
    assert 25 < sum(outcomes) < 100


def test_shifted_labels_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: every label is the one before."""
    plain = Listing.rows

    def shifted(listing: Listing) -> tuple[NDArray[np.void], tuple[str, ...]]:
        rows, folders = plain(listing)
        rows["label"] = np.roll(rows["label"], 1)
        return rows, folders

    monkeypatch.setattr(Listing, "rows", shifted)
    with pytest.raises(AssertionError, match="a wrong label"):
        [check_shard(seed, tmp_path) for seed in range(20)]


@pytest.mark.usefixtures("cache")
def test_a_name_twice_in_a_row_is_refused(tmp_path: Path) -> None:
    """Whose label would it be? The first image got the second's."""
    shard = tmp_path / "a.tar"
    parts = [
        write_tar(tmp_path / "part.tar", {"a.jpg": encode(), "a.cls": label}).read_bytes() for label in (b"0", b"1")
    ]
    length = parts[0].rindex(b"0" + bytes(511)) + 512
    write(shard, parts[0][:length] + parts[1])
    assert "a.jpg is there twice" in refused(shard)
