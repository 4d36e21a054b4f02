"""Image folders: torchvision's order, every byte, headers read as PIL reads them."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder as TorchvisionFolder

from deit_fast.data.sources.headers import image_size
from deit_fast.data.sources.open import open_source
from deit_fast.runtime.errors import DataError
from tests.image_files import encode, refused, write


def test_a_folder_is_read_in_torchvisions_order(tmp_path: Path) -> None:
    names = ["Zebra/b.jpg", "Zebra/a.JPEG", "apfel/10.png", "apfel/9.png", "apfel/sub/1.webp", "apfel/notes.txt"]
    names += ["Straße 東京/ü.bmp", "apfel/sub-2/x.jpg", "apfel/Sub/y.jpg"]
    kinds = {".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}
    for number, name in enumerate(names):
        write(tmp_path / name, encode(10 + number, 30, kinds.get(Path(name).suffix, "JPEG")))
    source, reference = open_source(str(tmp_path)), TorchvisionFolder(str(tmp_path))
    assert source.classes == reference.classes
    assert [(source.name(index), label) for index, label in enumerate(source.labels)] == reference.samples
    assert source.labels.dtype.kind in "iu"
    assert len(source) == 8
    for index in range(len(source)):
        encoded = source.read(index)
        assert encoded.dtype == np.uint8
        assert encoded.tobytes() == Path(source.name(index)).read_bytes()
        with Image.open(source.name(index)) as image:
            assert source.header(index, encoded)[:2] == (image.height, image.width)


def test_folder_errors_name_the_folder(tmp_path: Path) -> None:
    assert refused(tmp_path / "absent").startswith(f"{tmp_path / 'absent'}: expected")
    assert "found nothing" in refused("absent/train")
    (tmp_path / "empty").mkdir()
    assert "found neither" in refused(tmp_path / "empty")
    write(tmp_path / "images" / "cat" / "a.jpg", encode())
    write(tmp_path / "images" / "dog" / "readme.txt", b"none")
    assert refused(tmp_path / "images").startswith(f"{tmp_path / 'images' / 'dog'}: expected images")
    assert "*.txt" in refused(tmp_path / "images" / "dog" / "readme.txt")


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    contents = {"a": b"", "b": b"no image", "c": encode()[:20], "d": encode(kind="PNG")[:12]}
    for name, data in contents.items():
        write(tmp_path / "class" / f"{name}.jpg", data)
    source = open_source(str(tmp_path))
    for index, data in enumerate(contents.values()):
        with pytest.raises(DataError, match=rf"{source.name(index)}: expected an image, found {len(data)} bytes"):
            source.header(index, source.read(index))
    (tmp_path / "class" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"a\.jpg: expected a readable file"):
        source.read(0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"mode": "L"},
        {"mode": "CMYK"},
        {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"},
        {"icc_profile": b"\xff\xc0" * 40_000, "comment": b"\xff\xd8\xff\xc0"},
        {"kind": "PNG"},
        {"kind": "WEBP"},
        {"kind": "BMP"},
        {"kind": "TIFF"},
    ],
    ids=str,
)
def test_header_sizes_equal_pil(options: dict[str, object]) -> None:
    data = encode(301, 97, **options)
    assert image_size(np.frombuffer(data, np.uint8)) == (301, 97)


@pytest.mark.parametrize(
    "before", [b"\xff\xff", b"\xff\x01", *(b"\xff%c\0\x09" % code + b"\1" * 7 for code in b"\xc4\xcc")]
)
def test_what_may_stand_before_a_jpegs_frame_is_skipped(before: bytes) -> None:
    data = encode(9, 300)
    assert image_size(np.frombuffer(data[:2] + before + data[2:], np.uint8)) == (9, 300)


def test_real_photographs(shared_data: Path) -> None:
    source, reference = (
        open_source(str(shared_data / "imagenet-sample")),
        TorchvisionFolder(shared_data / "imagenet-sample"),
    )
    assert [(source.name(index), label) for index, label in enumerate(source.labels)] == reference.samples
    for index in range(len(source)):
        with Image.open(source.name(index)) as image:
            assert source.header(index, source.read(index))[:2] == (image.height, image.width)


def test_opening_does_not_stat_every_file(folder_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a call per file takes minutes on a million files")

    monkeypatch.setattr(os.path, "isfile", refuse)
    monkeypatch.setattr(os.path, "getsize", refuse)
    calls = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda *given, **named: calls.append(given) or stat(*given, **named))
    assert len(open_source(str(folder_data), "train")) == 96
    assert not [given for given in calls if str(given[0]).endswith(".jpg")]
