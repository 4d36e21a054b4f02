"""Tar shards: every kind of member name, indexes, and one line for everything that can be wrong."""

import os
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
    assert {path.name for path in tmp_path.glob("val.*")} == {"val.index.json", "val.index.npy"}
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
    with pytest.raises(DataError, match=r"a\.tar:image 3 of 3: expected \d+ bytes, found 0"):
        source.read(2)


def test_threads_may_read_at_once(tmp_path: Path) -> None:
    members = samples(0, 40)
    source = open_source(str(write_tar(tmp_path / "a.tar", members)))
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda index: source.read(index).tobytes(), list(range(40)) * 5))
    assert read == [data for name, data in members.items() if name.endswith("jpg")] * 5
