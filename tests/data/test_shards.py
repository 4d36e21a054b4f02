"""Tar shards: every kind of member name, indexes, and one line for everything that can be wrong."""

import os
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from deit_fast.data.sources.open import open_source
from deit_fast.runtime.errors import DataError
from tests.image_files import encode, refused, samples, write, write_tar

pytestmark = pytest.mark.usefixtures("cache")


def test_real_shards(shared_data: Path, tmp_path: Path) -> None:
    for path in (shared_data / "cifar10").iterdir():
        (tmp_path / path.name).symlink_to(path)  # the indexes stay out of the shared folder
    source = open_source(str(tmp_path), "val")
    assert len(list(tmp_path.glob("val-*.idx"))) == 2
    assert source.classes == (shared_data / "cifar10" / "classes.txt").read_text().split()
    assert np.bincount(source.labels).tolist() == [1000] * 10
    for index in range(0, len(source), 501):
        assert f"_{source.classes[source.labels[index]]}_" in source.name(index)
        assert source.header(index, source.read(index))[:2] == (32, 32)


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


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.jpg": b"x"}, "a has no cls"),
        ({"a.jpg": b"x", "a.cls": b"0", "b.cls": b"1"}, "b has no image"),
        ({"a.jpg": b"x", "b.jpg": b"x", "a.cls": b"0", "b.cls": b"0"}, "a has no cls"),
        ({"a.jpg": b"x", "a.cls": b"cat"}, "class number in the .cls of a.jpg, found 'cat'"),
        ({"a.jpg": b"x", "a.cls": b"-1"}, "found '-1'"),
        ({"a.jpg": b"x", "a.cls": b"1.0"}, "found '1.0'"),
        ({"a.jpg": b"x", "a.cls": b"9" * 30}, "found '999"),
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
    program = "import sys; from deit_fast.data.sources.open import open_source; print(len(open_source(sys.argv[1])))"
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
