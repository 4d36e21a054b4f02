"""The index of shards: what it says, when it is made anew, who makes it, and that a start with one reads no shard."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.indexed_shards import IndexedShards
from deit_fast.data.sources.open import open_source
from deit_fast.data.sources.shard_index import ROW, read_index
from deit_fast.data.sources.tar_shards import TarShards
from tests.image_files import encode, refused, samples, write, write_tar

pytestmark = pytest.mark.usefixtures("cache")


def shards(folder: Path, counts: tuple[int, ...] = (4, 3, 5)) -> list[Path]:
    return [
        write_tar(folder / f"train-{number:02}.tar", samples(20 * number, count)) for number, count in enumerate(counts)
    ]


def by_tarfile(paths: list[Path]) -> list[tuple[bytes, int]]:
    """Images and labels in order, as Python's tarfile reads them."""
    found = []
    for path in paths:
        with tarfile.open(path) as archive:
            content = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
        found += [
            (data, int(content[name.replace(".jpg", ".cls")])) for name, data in content.items() if name[-3:] == "jpg"
        ]
    return found


def contents(source: Source) -> list[tuple[bytes, int]]:
    return [(source.read(number).tobytes(), int(source.labels[number])) for number in range(len(source))]


def opened(uri: Path | str) -> IndexedShards:
    source = open_source(str(uri), "train")
    assert isinstance(source, IndexedShards)
    return source


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Bytes that were read of each .tar; its reads as "NAME reads"."""
    seen, plain = Counter[str](), os.pread

    def pread(file: int, size: int, offset: int) -> bytes:
        path = Path(os.readlink(f"/proc/self/fd/{file}"))
        if path.suffix == ".tar":
            seen[path.name] += size
            seen["reads"] += 1
        return plain(file, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    return seen


def test_what_the_files_say(tmp_path: Path) -> None:
    paths = shards(tmp_path)
    assert contents(opened(tmp_path)) == by_tarfile(paths)
    said = json.loads((tmp_path / "train.index.json").read_text())
    rows = np.load(tmp_path / "train.index.npy")
    assert rows.dtype == ROW
    assert rows.dtype.itemsize == 12
    expected = []
    for path in paths:
        with tarfile.open(path) as archive:
            members = {member.name: member for member in archive}
        expected += [
            (member.offset_data // 512, member.size, int(name[1:4]) % 3)
            for name, member in members.items() if name.endswith("jpg")
        ]  # fmt: skip
    assert rows.tolist() == expected
    assert [shard[:2] + shard[3:4] for shard in said["shards"]] == [
        [path.name, path.stat().st_size, count] for path, count in zip(paths, (4, 3, 5), strict=True)
    ]
    assert said["rows"] == hashlib.sha256(rows.tobytes()).hexdigest()
    assert said["classes"] == ["0", "1", "2"]
    index = read_index((tmp_path / "train.index.json").read_bytes(), tmp_path / "train.index.npy")
    assert index.edges.tolist() == [0, 4, 7, 12] == opened(tmp_path).shard_edges.tolist()  # type: ignore[union-attr]
    assert index.counted


def test_a_start_with_an_index_reads_at_most_8_headers(tmp_path: Path, reads: Counter[str]) -> None:
    paths = shards(tmp_path, (2,) * 30)
    opened(tmp_path)
    assert reads["reads"] > 30
    reads.clear()
    source = opened(tmp_path)
    assert source.identity() is not None
    assert reads.pop("reads") <= 8
    assert max(reads.values()) <= 512
    assert isinstance(np.asarray(source.labels).base, np.ndarray | np.memmap)  # a view
    assert contents(source) == by_tarfile(paths)


@pytest.mark.parametrize("change", ["appended", "newer", "older", "hidden file first", "one more shard", "one less"])
def test_it_is_made_anew_where_shards_changed(tmp_path: Path, change: str, reads: Counter[str]) -> None:
    paths = shards(tmp_path)
    opened(tmp_path)
    time = paths[1].stat().st_mtime_ns
    changed = paths[1].name
    if change == "appended":
        write_tar(paths[1], samples(20, 9))
        os.utime(paths[1], ns=(time, time))  # by something that kept the time
    elif change in ("newer", "older"):
        sized = paths[1].stat().st_size
        write_tar(paths[1], {name: data if "cls" not in name else b"1\n" for name, data in samples(20, 3).items()})
        assert paths[1].stat().st_size == sized
        later = time + (10**9 if change == "newer" else -(10**9))
        os.utime(paths[1], ns=(later, later))
    elif change == "hidden file first":
        write_tar(paths[1], {".hidden.txt": b"x" * 2000} | samples(40, 3))
    elif change == "one more shard":
        paths.append(write_tar(tmp_path / "train-03.tar", samples(70, 2)))
        changed = "train-03.tar"
    else:
        paths.pop().unlink()
        changed = ""
    reads.clear()
    assert contents(opened(tmp_path)) == by_tarfile(paths)
    assert {name for name, size in reads.items() if name != "reads" and size > 600} >= ({changed} if changed else set())
    reads.clear()
    source = opened(tmp_path)
    assert reads["reads"] <= 8  # it was kept
    assert contents(source) == by_tarfile(paths)
    assert {path.name for path in tmp_path.iterdir() if path not in paths} == {
        ".train.index.lock", "train.index.json", "train.index.npy",
    }  # fmt: skip


def test_other_shards_of_its_name_size_and_time_are_seen_by_their_headers(tmp_path: Path) -> None:
    (path,) = shards(tmp_path, (3,))
    opened(tmp_path)
    status = path.stat()
    members = samples(0, 3)
    moved = {"s000.cls": members["s000.cls"], **{name: data for name, data in members.items() if name != "s000.cls"}}
    write_tar(path, dict(reversed(list(moved.items()))))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert contents(opened(tmp_path)) == by_tarfile([path])


@pytest.mark.parametrize(
    "damage",
    ["no npy", "no json", "empty npy", "cut npy", "other npy", "garbage", "no object", "later format", "twice"],
)
def test_a_damaged_index_is_made_anew(tmp_path: Path, damage: str) -> None:
    paths = shards(tmp_path / "set")
    opened(tmp_path / "set")
    said, rows = tmp_path / "set" / "train.index.json", tmp_path / "set" / "train.index.npy"
    plain = json.loads(said.read_text())
    if damage.startswith("no ") and damage != "no object":
        (rows if "npy" in damage else said).unlink()
    elif damage == "empty npy":
        rows.write_bytes(b"")
    elif damage == "cut npy":
        rows.write_bytes(rows.read_bytes()[:-40])
    elif damage == "other npy":  # as many rows, of other images
        shards(tmp_path / "other", (5, 3, 4))
        opened(tmp_path / "other")
        shutil.copy(tmp_path / "other" / "train.index.npy", rows)
    elif damage == "later format":
        said.write_text(json.dumps(plain | {"format": 99}))
    else:
        said.write_text({"garbage": "{", "no object": "[1, 2]", "twice": said.read_text() * 2}[damage])
    assert contents(opened(tmp_path / "set")) == by_tarfile(paths)
    assert json.loads(said.read_text()) == plain


def test_some_of_its_shards_and_shards_of_two_sets_in_a_folder(tmp_path: Path, reads: Counter[str]) -> None:
    paths = shards(tmp_path)
    others = [write_tar(tmp_path / "more-train.tar", samples(80, 2))]
    opened(tmp_path / "train-*.tar")
    reads.clear()
    assert contents(opened(f"{tmp_path}/train-{{01..02}}.tar")) == by_tarfile(paths[1:])
    assert contents(TarShards("", [paths[2], paths[0]])) == by_tarfile([paths[2], paths[0]])
    assert contents(opened(paths[1])) == by_tarfile(paths[1:2])
    assert opened(paths[1]).classes == ["0", "1", "2"]
    only = write_tar(tmp_path / "train-09.tar", {"a.jpg": encode(), "a.cls": b"0"})
    assert opened(only).classes == ["0"]  # as many as these have
    assert opened(paths[1]).shard_edges.tolist() == [0, 3]  # type: ignore[union-attr]
    assert reads["train-01.tar"] < 20_000  # images and spot checks: it was not listed again
    assert contents(opened(others[0])) == by_tarfile(others)
    reads.clear()
    opened(f"{tmp_path}/train-{{00..02}}.tar")
    assert reads["reads"] <= 8  # the other set's shard left these alone


def test_of_a_range_over_folders_it_is_in_the_cache_folder(tmp_path: Path, cache: Path, reads: Counter[str]) -> None:
    paths = [write_tar(tmp_path / f"part-{number}" / "a.tar", samples(20 * number, 3)) for number in range(3)]
    uri = f"{tmp_path}/part-{{0..2}}/a.tar"
    for _ in range(2):
        reads.clear()
        assert len(opened(uri)) == 9
    assert reads["reads"] <= 8
    assert contents(opened(uri)) == by_tarfile(paths)
    assert all(os.listdir(path.parent) == ["a.tar"] for path in paths)
    assert len(list(cache.glob("*.index.npy"))) == 1


def test_of_a_read_only_folder_too_and_else_it_is_made_at_each_start(
    tmp_path: Path, cache: Path, reads: Counter[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    paths = {folder: shards(folder, (2, 3 + number)) for number, folder in enumerate(folders)}
    for folder in folders:
        folder.chmod(0o555)
    try:
        for folder in folders * 2:
            reads.clear()
            assert contents(opened(folder)) == by_tarfile(paths[folder])
            assert sorted(path.name for path in folder.iterdir()) == ["train-00.tar", "train-01.tar"]
        assert len(list(cache.glob("*.index.json"))) == 2
        assert capsys.readouterr().err == ""
        shutil.rmtree(cache)
        write(cache, b"a file in its place")
        assert contents(opened(folders[0])) == by_tarfile(paths[folders[0]])
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"deit-fast: {folders[0]}/train-00.tar: the index of the shards can be written neither")
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_a_full_disk_costs_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    paths = shards(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert contents(opened(tmp_path)) == by_tarfile(paths)
    assert "(No space left on device); each process makes it" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == [
        "train-00.tar", "train-01.tar", "train-02.tar",
    ]  # fmt: skip


RACER = """
import os, sys
seen, plain = [], os.pread
os.pread = lambda file, size, offset: seen.append(size) or plain(file, size, offset)
from deit_fast.data.sources.open import open_source
source = open_source(sys.argv[1], "train")
print(len(source), sum(seen) > 8 * 512, source.identity().digest)
"""


def test_of_several_processes_one_makes_it(tmp_path: Path) -> None:
    shards(tmp_path, (40, 40, 40))
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [racer.communicate(timeout=120)[0].split() for racer in racers]
    assert [words[0] for words in said] == ["120"] * 3
    assert sorted(words[1] for words in said) == ["False", "False", "True"]
    assert len({words[2] for words in said}) == 1
    assert not [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"]


def test_classes_that_are_named_later_cost_no_reading(tmp_path: Path, reads: Counter[str]) -> None:
    paths = shards(tmp_path)
    assert opened(tmp_path).counted
    reads.clear()
    write(tmp_path / "classes.txt", b"ant\nbee\n")
    for _ in range(2):
        message = refused(tmp_path, "train")
        assert message == f"{tmp_path / 'classes.txt'}: expected a name for each of at least 3 classes, found 2"
    write(tmp_path / "classes.txt", b"ant\nbee\ncow\ndog\n")
    for _ in range(2):
        source = opened(tmp_path)
        assert (source.classes, source.counted) == (["ant", "bee", "cow", "dog"], False)
    assert reads["train-00.tar"] <= 6 * 512  # spot checks
    assert contents(source) == by_tarfile(paths)


def test_names_that_change_their_class_are_read_again(tmp_path: Path) -> None:
    members = {f"{n}.{kind}": data for n, name in enumerate((b"bee", b"ant")) for kind, data in
               (("jpg", encode(10 + n)), ("cls", name))}  # fmt: skip
    write_tar(tmp_path / "train-00.tar", members)
    for names, labels in ((b"ant\nbee\n", [1, 0]), (b"bee\ncow\nant\n", [0, 2])):
        write(tmp_path / "classes.txt", names)
        assert opened(tmp_path).labels.tolist() == labels


def test_an_index_file_of_dali_is_left_alone(tmp_path: Path) -> None:
    (path,) = shards(tmp_path, (3,))
    write(tmp_path / "train-0.idx", b"v1.2 1\njpg 512 3 a.jpg cls 1536 1 a.cls\n")
    assert contents(opened(tmp_path)) == by_tarfile([path])
    assert (tmp_path / "train-0.idx").read_bytes().startswith(b"v1.2 1\n")


KINDS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@pytest.mark.parametrize("kind", KINDS)
def test_tar_files_of_every_kind_read_as_tarfile_reads_them(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(7)
    names = ["a", "größe", "two words", "deep/er.d/x", "n" * 90] + (
        [] if kind == "ustar" else ["n" * 130, "long" * 60 + "/" + "k" * 90]
    )
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=KINDS[kind]) as archive:
        for number, name in enumerate(names * 4):
            for suffix, data in (("jpg", rng.bytes(int(rng.integers(1, 90_000)))), ("cls", b"%d" % (number % 3))):
                member = tarfile.TarInfo(f"{name}{number}.{suffix}")
                member.size, member.mtime = len(data), 1.5 if number % 2 and kind == "pax" else 2
                archive.addfile(member, io.BytesIO(data))
            for type_ in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
                other = tarfile.TarInfo(f"other{number}")
                other.type, other.linkname = type_, "n" * (140 if kind != "ustar" else 20)
                archive.addfile(other)
    with tarfile.open(path) as archive:
        members = [member for member in archive if member.isreg()]
        expected = [
            (f"{path}:{each.name}", archive.extractfile(each).read())  # type: ignore[union-attr]
            for each in members if each.name.endswith("jpg")
        ]  # fmt: skip
    source = open_source(str(path))
    assert [(source.name(number), source.read(number).tobytes()) for number in range(len(source))] == expected
    assert source.labels.tolist() == [number % 3 for number in range(len(names) * 4)]
