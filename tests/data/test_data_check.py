"""deit-fast data check: what it counts and finds, in folders and shards, and its status."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from deit_fast.cli.main import main
from deit_fast.data.sources.open import open_source
from deit_fast.data.tools import check
from deit_fast.data.tools.check import check_source, open_to_check
from tests.data.test_substitute import refused_by_decoder
from tests.hostile import Memory, damage, sound_images
from tests.image_files import encode, samples, write, write_tar

pytestmark = pytest.mark.usefixtures("cache")


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    status = main(["data", "check", *map(str, words), "--threads", "2"])
    return status, capsys.readouterr().out


def test_a_sound_folder(folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = run(capsys, folder_data, "--out", tmp_path / "bad.txt")
    assert status == 0
    assert "96 images of 3 classes" in text
    assert "33 images of 3 classes" in text  # val/ beside it
    assert "96 JPEG" in text
    assert text.count("0 cannot be used") == 2
    assert (tmp_path / "bad.txt").read_text() == ""


def test_bad_images_are_listed(folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    shutil.copytree(folder_data / "train", root)
    images = sorted(root.rglob("*.jpg"))
    contents = {3: b"", 40: b"GIF89a" + bytes(20), 41: refused_by_decoder(images[41].read_bytes()), 90: b"\xff\xd8"}
    contents[60] = images[60].read_bytes()[:-30]
    for index, content in contents.items():
        images[index].write_bytes(content)
    images[70].write_bytes(encode(30, 200, "PNG"))
    odd = root / "class0" / "new\nline.jpg"
    write(odd, b"none")
    status, text = run(capsys, root, "--out", tmp_path / "bad.txt")
    assert status == 1
    lines = (tmp_path / "bad.txt").read_text().splitlines()
    expected = {str(images[index]) for index in contents} | {str(odd).replace("\n", r"\n")}
    assert {line.partition("\t")[0] for line in lines} == expected
    assert all(f"  {line.replace(chr(9), ': ')}" in text.splitlines() for line in lines)
    assert "97 images of 3 classes" in text
    assert "1 PNG" in text
    assert "6 cannot be used:" in text
    assert "width: 40 to 200 px" in text


def test_it_finds_what_training_does_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images: list[bytes | None] = list(sound_images(30, rng))
    for index, kind in ((0, "empty"), (11, "huge"), (17, "missing"), (29, "garbage")):
        images[index] = damage(kind, images[index] or b"", b"", rng)
    images[12] = refused_by_decoder(images[12] or b"")
    source = Memory(images)
    whole = check_source(source, threads=2)
    assert [name for name, _ in whole.bad] == [rf"image\n{index:03}.jpg" for index in (0, 11, 12, 17, 29)]
    assert (whole.images, len(whole.sizes)) == (30, 25)
    for chunk, pixels in ((1, 2**28), (7, 3000), (30, 1)):
        monkeypatch.setattr(check, "_CHUNK", chunk)
        monkeypatch.setattr(check, "_DECODED_PIXELS", pixels)
        assert check_source(source, threads=1).bad == whole.bad


def faults(folder: Path) -> list[tuple[str, str]]:
    return [(Path(name).name, reason) for name, reason in check_source(open_to_check(str(folder), "train"), 1).bad]


def test_every_fault_of_every_shard_is_found(tmp_path: Path) -> None:
    write(tmp_path / "classes.txt", b"a\nb\nc\n")
    write_tar(tmp_path / "train-0.tar", samples(0, 4))
    whole = write_tar(tmp_path / "train-1.tar", samples(4, 4)).read_bytes()
    write(tmp_path / "train-1.tar", whole[:3500])
    write_tar(
        tmp_path / "train-2.tar",
        {"a.jpg": encode(), "b.jpg": encode(), "b.cls": b"7", "c.cls": b"1", "d.jpg": encode(), "d.cls": b"cat",
         "e.jpg": b"none", "e.cls": b"2", "f.jpg": encode(), "f.cls": b"0"},
    )  # fmt: skip
    write_tar(tmp_path / "train-3.tar", {"a.jpg": encode(), "a.cls": b"0", "b.jpg": encode(), "b.cls": b"0"})
    twice = write_tar(tmp_path / "part.tar", {"b.jpg": encode(), "b.cls": b"1"}).read_bytes()
    content = (tmp_path / "train-3.tar").read_bytes()
    end = content.rindex(b"0" + bytes(511)) + 512
    write(tmp_path / "train-3.tar", content[:end] + twice)
    (tmp_path / "part.tar").unlink()
    write(tmp_path / "train-4.tar", b"")
    write(tmp_path / "train-5.tar", b"not a tar" * 300)

    source = open_to_check(str(tmp_path), "train")
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 0]
    found: dict[str, list[str]] = {}
    for name, reason in faults(tmp_path):
        found.setdefault(name, []).append(reason)
    assert "train-0.tar" not in found
    assert len(found["train-1.tar"]) == 1
    assert found["train-2.tar"] == [
        "a has no cls",
        "b.cls: expected a class number below 3, found '7'",
        "c has no image",
        "d.cls: expected a class number below 3, found 'cat'",
    ]
    assert found["train-2.tar:e.jpg"][0].startswith("expected an image, found 4 bytes")
    assert found["train-3.tar"] == ["b.jpg is there twice in a row", "b.cls is there twice in a row"]
    assert len(found["train-4.tar"]) == 1
    assert len(found["train-5.tar"]) == 1


def test_a_shard_cut_anywhere_is_found(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", samples(0, 3)).read_bytes()
    content = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    (tmp_path / "whole.tar").unlink()
    for cut in range(0, content + 1, 256):
        write(tmp_path / "train-0.tar", whole[:cut])
        assert faults(tmp_path), cut
    write(tmp_path / "train-0.tar", whole)
    assert not faults(tmp_path)


def test_an_index_that_lies_is_found(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", samples(0, 3))
    assert not faults(tmp_path)
    open_source(str(tmp_path), "train")
    rows = tmp_path / "train.index.npy"
    content = bytearray(rows.read_bytes())
    content[-32 - 2 * 12 - 4] ^= 1  # a bit of the first image's label
    rows.write_bytes(content)
    assert faults(tmp_path) == [
        ("train-0.tar", "the index has other images or labels than the shard; remove train.index.json")
    ]
