"""Image folders and tar shards: torchvision's order, every byte, and one line for everything that can be wrong."""

import io
import os
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder as TorchvisionFolder

from deit_fast.data.classes import check_classes
from deit_fast.data.header import image_size
from deit_fast.data.sources import find_validation, open_source
from deit_fast.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "deit_fast"


def encode(height: int = 12, width: int = 17, kind: str = "JPEG", mode: str = "RGB", **options: object) -> bytes:
    random = np.random.default_rng(height * width)
    image = Image.fromarray(random.integers(0, 255, (height, width, 3), np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_tar(path: Path, members: dict[str, bytes], kind: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def samples(start: int, count: int, suffix: str = "jpg") -> dict[str, bytes]:
    members = {}
    for number in range(start, start + count):
        members[f"s{number:03}.{suffix}"] = encode(10 + number, 20)
        members[f"s{number:03}.cls"] = f"{number % 3}\n".encode()
    return members


def refused(uri: Path | str, split: str | None = None) -> str:
    """The message of the DataError that opening costs; it has to be one line."""
    with pytest.raises(DataError) as error:
        open_source(str(uri), split)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_is_read_in_torchvisions_order(tmp_path: Path) -> None:
    names = ["Zebra/b.jpg", "Zebra/a.JPEG", "apfel/10.png", "apfel/9.png", "apfel/sub/1.webp", "apfel/notes.txt"]
    names += ["Straße 東京/ü.bmp", "apfel/sub-2/x.jpg", "apfel/Sub/y.jpg"]
    kinds = {".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}
    for number, name in enumerate(names):
        write(tmp_path / name, encode(10 + number, 30, kinds.get(Path(name).suffix, "JPEG")))
    source, reference = open_source(str(tmp_path)), TorchvisionFolder(str(tmp_path))
    assert source.classes == reference.classes
    assert [(source.name(index), label) for index, label in enumerate(source.labels)] == reference.samples
    assert source.labels.dtype == np.int64
    assert len(source) == 8
    for index in range(len(source)):
        encoded = source.read(index)
        assert encoded.dtype == np.uint8
        assert encoded.tobytes() == Path(source.name(index)).read_bytes()
        with Image.open(source.name(index)) as image:
            assert source.size(index, encoded) == (image.height, image.width)
            assert source.size(index, encoded[:0]) == (image.height, image.width)  # remembered


def test_a_split_is_taken_where_the_folder_has_both(folder_data: Path, tmp_path: Path) -> None:
    assert len(open_source(str(folder_data), "train")) == 96
    assert len(open_source(str(folder_data), "val")) == 33
    assert len(open_source(str(folder_data / "val"), "train")) == 33  # a folder without splits is taken as it is
    assert "train/ and val/" in refused(folder_data)
    write(tmp_path / "train" / "a.jpg", encode())  # a class of trains
    write(tmp_path / "ship" / "a.jpg", encode())
    assert open_source(str(tmp_path), "train").classes == ["ship", "train"]


def test_folder_errors_name_the_folder(tmp_path: Path) -> None:
    assert refused(tmp_path / "absent").startswith(f"{tmp_path / 'absent'}: expected")
    assert "found nothing" in refused("s3://bucket/train")
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
            source.size(index, source.read(index))
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
            assert source.size(index, source.read(index)) == (image.height, image.width)


def test_real_shards(shared_data: Path, tmp_path: Path) -> None:
    for path in (shared_data / "cifar10").iterdir():
        (tmp_path / path.name).symlink_to(path)  # the indexes stay out of the shared folder
    source = open_source(str(tmp_path), "val")
    assert len(list(tmp_path.glob("val-*.idx"))) == 2
    assert source.classes == (shared_data / "cifar10" / "classes.txt").read_text().split()
    assert np.bincount(source.labels).tolist() == [1000] * 10
    for index in range(0, len(source), 501):
        assert f"_{source.classes[source.labels[index]]}_" in source.name(index)
        assert source.size(index, source.read(index)) == (32, 32)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("key", ["plain", "deep/er.d/x", "two words", "größe", "n" * 130, "long" * 24 + "/" + "k" * 90])
def test_every_kind_of_member_name(tmp_path: Path, kind: int, key: str) -> None:
    members = {f"{key}{number}.{suffix}": data for number in range(3) for suffix, data in
               (("jpg", encode(10 + number)), ("json", b"{}"), ("cls", b"%d" % number))}  # fmt: skip
    try:
        shard = write_tar(tmp_path / "a.tar", members, kind)
    except ValueError:
        pytest.skip("this kind of tar cannot hold names that long")
    source = open_source(str(shard))
    assert source.labels.tolist() == [0, 1, 2]
    assert [source.read(number).tobytes() for number in range(3)] == [encode(10 + number) for number in range(3)]
    if key.isascii():
        assert source.name(1) == f"{shard}:{key}1.jpg"


def test_shards_by_folder_range_glob_and_file(tmp_path: Path) -> None:
    for number in range(12):
        write_tar(tmp_path / f"train-{number:04}.tar", samples(number * 4, 4))
    write_tar(tmp_path / "val-0000.tar", samples(90, 5, "PNG"))
    keys = [f"s{number:03}" for number in range(48)]
    for uri, split in (
        ("", "train"),
        ("train-{0000..0011}.tar", None),
        ("train-{0000..0011}.tar", "val"),
        ("train-*.tar", None),
    ):
        source = open_source(str(tmp_path / uri), split)
        assert [source.name(index)[-8:-4] for index in range(len(source))] == keys, uri
        assert source.labels.tolist() == [number % 3 for number in range(48)]
        assert source.size(30, source.read(30)) == (40, 20)
    assert len(open_source(str(tmp_path), "val")) == 5
    assert len(open_source(str(tmp_path / "train-0003.tar"))) == 4
    assert len(open_source(str(tmp_path / "train-{0003..0004}.tar"))) == 8
    assert "val-*.tar" in refused(tmp_path)
    assert "3 shards, 1 missing" in refused(tmp_path / "train-{0010..0012}.tar")
    assert "train-0012.tar" in refused(tmp_path / "train-{0010..0012}.tar")
    assert "2 shards, 2 missing" in refused(tmp_path / "other-{0..1}.tar")
    assert "counts up, got {3..1}" in refused(tmp_path / "train-{3..1}.tar")
    assert "found nothing" in refused(tmp_path / "other-*.tar")
    (tmp_path / "val-0000.tar").unlink()
    assert "expected val-*.tar, found 12 other shards" in refused(tmp_path, "val")
    (tmp_path / "train-0005.tar").unlink()
    assert "number 5 is missing" in refused(tmp_path, "train")
    assert "number 5 is missing" in refused(tmp_path / "*.tar")


def test_class_names_beside_the_shards(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "train-0.tar", samples(0, 4))
    source = open_source(str(shard))
    assert source.classes == ["0", "1", "2"]
    check_classes(source, 3)
    with pytest.raises(DataError) as error:
        check_classes(source, 1000)
    assert str(error.value) == f"model.num_classes=1000: {shard} has 3 classes; set model.num_classes=3"
    (tmp_path / "classes.txt").write_text("ant\nbee\ncow\ndog\n\n")
    assert open_source(str(shard)).classes == ["ant", "bee", "cow", "dog"]
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    assert "at least 3 classes, found 2" in refused(shard)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.jpg": b"x"}, "a has no cls"),
        ({"a.jpg": b"x", "a.cls": b"0", "b.cls": b"1"}, "b has no image"),
        ({"a.jpg": b"x", "b.jpg": b"x", "a.cls": b"0", "b.cls": b"0"}, "a has no cls"),
        ({"a.jpg": b"x", "a.cls": b"cat"}, "class number in the .cls of a.jpg, found 'cat'"),
        ({"a.jpg": b"x", "a.cls": b"-1"}, "found '-1'"),
        ({"a.jpg": b"x", "a.cls": b""}, "found ''"),
        ({}, "found no members"),
    ],
)
def test_bad_samples_name_shard_and_key(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    shard = write_tar(tmp_path / "bad.tar", members)
    assert refused(shard).startswith(f"{shard}: expected")
    assert message in refused(shard)  # also with the index that the first try left


def test_truncated_shards_are_refused(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", samples(0, 5)).read_bytes()
    content = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    assert len(open_source(str(write(tmp_path / "tight.tar", whole[: content + 1024])))) == 5
    cuts = {"zero": 0, "header": 100, "image": 700, "members": content - 1024, "label": content - 510, "end": content}
    for name, cut in cuts.items():
        message = refused(write(tmp_path / f"{name}.tar", whole[:cut]))
        assert f"{name}.tar: expected" in message, name
    assert "no members" in refused(write(tmp_path / "text.tar", b"not a tar" * 500))
    with tarfile.open(tmp_path / "gzip.tar", "w:gz") as archive:
        archive.add(tmp_path / "whole.tar", "a.jpg")
        archive.add(tmp_path / "zero.tar", "a.cls")
    assert "gzip.tar: expected" in refused(tmp_path / "gzip.tar")


def test_a_shard_cut_off_after_opening_is_named(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", samples(0, 3))
    source = open_source(str(shard))
    os.truncate(shard, 2048)
    with pytest.raises(DataError, match=r"a\.tar:s002\.jpg: expected \d+ bytes, found 0"):
        source.read(2)


def test_an_index_is_made_once_and_remade_when_the_shard_changes(tmp_path: Path, cache: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", samples(0, 3))
    index = tmp_path / "a.idx"
    assert len(open_source(str(shard))) == 3
    made = index.stat().st_mtime_ns
    assert index.read_text().startswith("v1.2 3\n")
    assert len(open_source(str(shard))) == 3
    assert index.stat().st_mtime_ns == made
    write_tar(shard, samples(10, 5))
    os.utime(shard, ns=(made + 10**9, made + 10**9))
    assert len(open_source(str(shard))) == 5  # newer than its index
    write_tar(shard, samples(0, 7))
    os.utime(shard, ns=(0, 0))
    assert len(open_source(str(shard))) == 7  # appended to by something that kept the time
    index.write_text("v1.1 1\njpg 512 3\n")
    assert len(open_source(str(shard))) == 7  # of another version
    write_tar(shard, {".hidden.txt": b"x" * 2000} | samples(20, 7))
    os.utime(shard, ns=(0, 0))
    assert open_source(str(shard)).name(0).endswith("s020.jpg")  # as many samples, at other places
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.idx", "a.tar"]
    assert not cache.exists()


def test_an_index_that_fits_by_chance_is_not_believed(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", {"a.jpg": b"x" * 100, "a.cls": b"0"})
    assert len(open_source(str(shard)).read(0)) == 100
    write_tar(shard, {"a.jpg": b"x" * 200, "a.cls": b"0"})  # at the same places
    newer = (tmp_path / "a.idx").stat().st_mtime_ns + 10**9
    os.utime(shard, ns=(newer, newer))
    assert len(open_source(str(shard)).read(0)) == 200
    digits = b"1" * 1536 + bytes(1024)
    write_tar(shard, {"a.jpg": digits, "a.cls": b"2"})
    (tmp_path / "a.idx").write_text("v1.2 1\njpg 512 3 a.jpg cls 1536 1 a.cls\n")
    source = open_source(str(shard))
    assert source.labels.tolist() == [2]
    assert source.read(0).tobytes() == digits


def test_indexes_of_a_read_only_folder_are_cached_by_place_and_size(tmp_path: Path, cache: Path) -> None:
    shards = [write_tar(tmp_path / name / "a.tar", samples(start, 3)) for name, start in (("one", 0), ("two", 5))]
    for shard in shards:
        shard.parent.chmod(0o555)
    try:
        for shard, start in zip(shards, (0, 5), strict=True):
            for _ in range(2):
                assert open_source(str(shard)).name(0) == f"{shard}:s{start:03}.jpg"
            assert [entry.name for entry in shard.parent.iterdir()] == ["a.tar"]
        assert len(list(cache.iterdir())) == 2
        cache.chmod(0o555)
        write_tar(shards[0], samples(0, 30))
        assert "expected to write its index" in refused(shards[0])
    finally:
        cache.chmod(0o755)
        for shard in shards:
            shard.parent.chmod(0o755)


def test_processes_may_race_for_the_index(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"train-{number}.tar", samples(0, 40))
    program = "import sys; from deit_fast.data.sources import open_source; print(len(open_source(sys.argv[1])))"
    racers = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [racer.communicate(timeout=60)[0] for racer in racers] == ["120\n"] * 4
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".idx"] * 3 + [".tar"] * 3


def test_threads_may_read_at_once(tmp_path: Path) -> None:
    members = samples(0, 40)
    source = open_source(str(write_tar(tmp_path / "a.tar", members)))
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda index: source.read(index).tobytes(), list(range(40)) * 5))
    assert read == [data for name, data in members.items() if name.endswith("jpg")] * 5


def test_opening_does_not_stat_every_file(folder_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a call per file takes minutes on a million files")

    monkeypatch.setattr(os.path, "isfile", refuse)
    monkeypatch.setattr(os.path, "getsize", refuse)
    calls = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda *given, **named: calls.append(given) or stat(*given, **named))
    assert len(open_source(str(folder_data), "train")) == 96
    assert len(calls) < 10


def test_no_torch_is_imported() -> None:
    modules = "deit_fast.data.sampler, deit_fast.data.params, deit_fast.data.demo"
    program = f"import sys, {modules}; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_validation_is_found_beside_the_training_images(tmp_path: Path) -> None:
    for name in ("both/train/a", "both/val/a", "alone/train/a"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "shards").mkdir()
    for name in ("train-0000.tar", "train-0001.tar", "val-0000.tar"):
        (tmp_path / "shards" / name).touch()
    for uri in ("both", "both/train", "both/train/"):
        assert find_validation(f"{tmp_path}/{uri}") == f"{tmp_path}/both/val"
    for uri in ("shards", "shards/train-{0000..0001}.tar", "shards/train-*.tar", "shards/train-0001.tar"):
        assert find_validation(f"{tmp_path}/{uri}") == f"{tmp_path}/shards/val-*.tar"
    for uri in ("alone", "alone/train", "absent", "absent/train-0000.tar"):
        assert find_validation(f"{tmp_path}/{uri}") is None


def test_a_lone_training_split_is_not_taken_for_a_class(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "cat"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    assert open_source(str(tmp_path), "train").classes == ["cat"]
