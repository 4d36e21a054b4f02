"""Listings of folders: kept while nothing changed, made by one process of a node, never wrong, whatever fails."""

import errno
import fcntl
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets import ImageFolder as TorchvisionFolder

from deit_fast.data.sources import folder, kept_listing, listed_files, listing
from deit_fast.data.sources.identity import identify
from deit_fast.data.sources.open import open_source
from deit_fast.runtime import mapped, mounts
from deit_fast.runtime.errors import DataError

pytestmark = pytest.mark.usefixtures("cache")
NAMES = [f"{name}/{number:03}.jpg" for name in ("ant", "bee", "cow") for number in range(20)]


def put(path: Path, size: int = 5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        put(tmp_path / "set" / name, 10 + number)
    put(tmp_path / "set" / "bee" / "sub" / "x.png")
    (tmp_path / "set" / "cow" / "empty" / "deeper").mkdir(parents=True)
    put(tmp_path / "elsewhere" / "one" / "1.jpg")
    put(tmp_path / "elsewhere" / "two" / "2.jpg")
    os.symlink(tmp_path / "elsewhere" / "one", tmp_path / "set" / "ant" / "linked")
    return tmp_path / "set"


def pass_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute, so that the folders are none that changed just now."""
    clock = time.time_ns
    monkeypatch.setattr(kept_listing.time, "time_ns", lambda: clock() + 60 * 10**9)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    pass_time(monkeypatch)


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by a class with each that is walked."""
    seen, plain = [], folder.walk_images
    monkeypatch.setattr(folder, "walk_images", lambda path: seen.append(path) or plain(path))
    return seen


def samples(place: Path) -> list[tuple[str, int]]:
    source = open_source(str(place))
    return [(source.name(index), int(label)) for index, label in enumerate(source.labels)]


def check(place: Path) -> None:
    """As torchvision lists it, which follows links too."""
    assert samples(place) == TorchvisionFolder(str(place)).samples


@pytest.mark.usefixtures("settled")
def test_a_folder_is_walked_once(root: Path, walks: list[str]) -> None:
    for _ in range(3):
        check(root)
        assert len(walks) == 3
    link = root.parent / "link"
    os.symlink(root, link)
    check(link)
    assert len(walks) == 6  # a path of its own, though the same folder
    assert open_source(os.path.relpath(root)).name(0) == os.path.join(os.path.relpath(root), "ant", "000.jpg")
    assert len(walks) == 6


def retarget(link: Path, target: Path) -> None:
    link.unlink()
    link.symlink_to(target)


def with_its_times(path: Path, change: Callable[[], object]) -> None:
    """The change, after which the folder's times are set back, as rsync and tar do."""
    status = path.stat()
    change()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "added": lambda root: put(root / "bee/new.jpg"),
    "added in a folder inside": lambda root: put(root / "bee/sub/a.png"),
    "added where there was none": lambda root: put(root / "cow/empty/deeper/a.png"),
    "added behind a link": lambda root: put(root.parent / "elsewhere/one/2.jpg"),
    "removed": lambda root: (root / "ant/007.jpg").unlink(),
    "renamed": lambda root: (root / "ant/007.jpg").rename(root / "ant/999.jpg"),
    "moved": lambda root: (root / "ant/007.jpg").rename(root / "bee/ant7.jpg"),
    "no image any more": lambda root: (root / "ant/007.jpg").rename(root / "ant/007.txt"),
    "a class added": lambda root: put(root / "dog/1.jpg"),
    "a class removed": lambda root: shutil.rmtree(root / "cow"),
    "a class renamed": lambda root: (root / "cow").rename(root / "aardvark"),
    "classes swapped": lambda root: [(root / "ant").rename(root / "x"), (root / "bee").rename(root / "ant"),
                                     (root / "x").rename(root / "bee")],
    "a class moved away": lambda root: (root / "cow").rename(root.parent / "cow"),
    "a link elsewhere": lambda root: retarget(root / "ant/linked", root.parent / "elsewhere/two"),
    "its target replaced": lambda root: [shutil.rmtree(root.parent / "elsewhere/one"),
                                         put(root.parent / "elsewhere/one/3.jpg")],
    "times set back": lambda root: with_its_times(root / "bee", lambda: put(root / "bee/new.jpg")),
    "all replaced": lambda root: [shutil.copytree(root, root.parent / "copy", symlinks=True), shutil.rmtree(root),
                                  (root.parent / "copy/ant/000.jpg").unlink(), (root.parent / "copy").rename(root)],
}  # fmt: skip


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("kind", CHANGES)
def test_what_changed_is_seen(root: Path, kind: str, walks: list[str]) -> None:
    check(root)
    before = samples(root)
    walks.clear()
    CHANGES[kind](root)
    check(root)
    assert walks
    names = [name for name, _ in samples(root)]
    assert samples(root) != before or kind == "classes swapped"
    assert all(os.path.exists(name) for name in names)


@pytest.mark.parametrize("remembered", [0, 2, 2**15])
def test_names_by_number_and_by_slice(root: Path, monkeypatch: pytest.MonkeyPatch, remembered: int) -> None:
    monkeypatch.setattr(listing, "_REMEMBERED", remembered)
    source = open_source(str(root))
    names, inner = [name for name, _ in TorchvisionFolder(str(root)).samples], source.relative_names()
    assert [source.name(index) for index in (*range(62), *range(61, -1, -1))] == names + names[::-1]
    assert source.name(np.int64(20)) == names[20]
    expected = [os.path.relpath(name, root).partition("/")[2] for name in names]
    for part in (slice(None), slice(3, 45), slice(None, None, 7), slice(21, 21), slice(50, 999), slice(-5, None)):
        assert inner[part] == expected[part]
    assert (inner[-1], list(inner), len(inner)) == (expected[-1], expected, 62)
    with pytest.raises(IndexError):
        inner[62]


@pytest.mark.usefixtures("settled")
def test_a_source_goes_to_other_processes(root: Path) -> None:
    source = pickle.loads(pickle.dumps(open_source(str(root))))
    assert [(source.name(index), int(label)) for index, label in enumerate(source.labels)] == samples(root)
    assert source.read(0).tobytes() == b"x" * 10
    assert identify(source) == identify(open_source(str(root)))


@pytest.mark.usefixtures("settled")
def test_another_containers_folder_of_the_same_path_is_another(root: Path, cache: Path, tmp_path: Path) -> None:
    check(root)
    (path,) = cache.glob("folders/*.listing")
    assert kept_listing._read(path, root, 0) is not None  # as if it had been waited for
    shutil.copytree(root, tmp_path / "copy", symlinks=True)
    root.rename(tmp_path / "away")
    (tmp_path / "copy").rename(root)
    assert kept_listing._read(path, root, 0) is None


@pytest.mark.usefixtures("settled")
def test_what_is_refused_is_refused_again(root: Path) -> None:
    check(root)
    shutil.rmtree(root / "cow")
    (root / "cow").mkdir()
    for _ in range(2):
        with pytest.raises(DataError, match=r"expected images .* in every class folder, none found"):
            open_source(str(root))
    shutil.rmtree(root)
    with pytest.raises(DataError, match="found nothing there"):
        open_source(str(root))


def test_a_change_within_a_tick_of_the_clock_is_seen(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system whose times are of two seconds, a folder that changes again after it was listed looks alike."""
    plain = kept_listing._state

    def coarse(status: os.stat_result) -> list[int]:
        number, _, ctime, size = plain(status)
        return [number, 0, ctime - ctime % (2 * 10**9), size]

    monkeypatch.setattr(kept_listing, "_state", coarse)
    check(root)
    put(root / "bee" / "new.jpg")
    check(root)


def test_a_folder_of_just_now_is_walked_again_and_no_later(
    root: Path, walks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    latest = max(os.stat(path).st_ctime_ns for path, _, _ in os.walk(root))
    clock = itertools.count(latest + 10**7, 1000)  # a hundredth of a second later
    with monkeypatch.context() as patch:
        patch.setattr(kept_listing.time, "time_ns", lambda: next(clock))
        check(root)
        check(root)
    assert len(walks) == 6
    pass_time(monkeypatch)
    for _ in range(2):
        check(root)
        assert len(walks) == 9


def test_what_a_program_mounts_is_always_walked(root: Path, walks: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pass_time(monkeypatch)
    monkeypatch.setattr(kept_listing, "find_mount", lambda path: mounts.Mount("fuse.s3fs", "s3fs"))
    for number in (3, 6):
        check(root)
        assert len(walks) == number


FORK = multiprocessing.get_context("fork")


@pytest.mark.parametrize(
    ("times", "later", "shared", "settled"),
    [
        ([10**18 + 123_456_789, 10**18 + 4_000_001], 99 * 10**6, False, False),
        ([10**18 + 123_456_789, 10**18 + 4_000_001], 101 * 10**6, False, True),
        ([10**18 + 123_456_789, 10**18 + 4_000_001], 101 * 10**6, True, False),  # NFS
        ([10**18 + 123_456_789, 10**18 + 4_000_001], 2001 * 10**6, True, True),
        ([10**18 + 10**9, 10**18 + 2 * 10**9], 999 * 10**6, False, False),  # whole seconds, as of HFS+
        ([10**18 + 10**9, 10**18 + 2 * 10**9], 1001 * 10**6, False, True),
        ([10**18 + 4 * 10**9, 10**18 + 2 * 10**9], 1999 * 10**6, False, False),  # even ones, as of FAT
        ([10**18], 2001 * 10**6, False, True),
        ([10**18 + 10**15 + 1], 0, False, False),  # in the future
    ],
)
def test_when_a_folders_time_tells_of_changes(times: list[int], later: int, shared: bool, settled: bool) -> None:
    begun = (max(times) if max(times) < 10**18 + 10**14 else 10**18) + later
    assert kept_listing._are_settled(times, begun, shared) == settled


@pytest.mark.parametrize("lasting", [True, False])
def test_one_process_of_a_node_walks(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lasting: bool
) -> None:
    """They ask at one time; of folders that changed just now too, the others take what was made while they waited."""
    processes, log, plain = 6, tmp_path / "log", folder.walk_images
    if lasting:
        pass_time(monkeypatch)
    together, begun = FORK.Barrier(processes), FORK.Barrier(processes)

    def walk(path: str) -> Iterator[Any]:
        with open(log, "a") as file:
            file.write(f"{path}\n")
        return plain(path)

    locked = kept_listing.exclusive

    def wait_and_lock(path: Path) -> Any:
        begun.wait(60)  # all have asked
        return locked(path)

    monkeypatch.setattr(folder, "walk_images", walk)
    monkeypatch.setattr(kept_listing, "exclusive", wait_and_lock)

    def work(results: Any) -> None:
        together.wait(60)
        results.put(samples(root))

    results = FORK.Queue()
    workers = [FORK.Process(target=work, args=(results,)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert all(each == TorchvisionFolder(str(root)).samples for each in found)
    assert len(log.read_text().splitlines()) == 3


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("damage", ["cut", "empty", "grown", "bits", "text", "folder", "earlier"])
def test_a_damaged_listing_is_made_anew(root: Path, cache: Path, damage: str, walks: list[str]) -> None:
    check(root)
    (path,) = cache.glob("folders/*.listing")
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    kinds: dict[str, list[bytes]] = {
        "cut": [whole[:size] for size in (5, 100, len(whole) // 2, len(whole) - 1)],
        "empty": [b""],
        "grown": [whole + b"\0", whole + whole],
        "bits": [whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :] for at in random.integers(0, len(whole), 40)],
        "text": [b"[]", b"x" * len(whole)],
    }
    for content in kinds.get(damage, []):
        path.write_bytes(content)
        walks.clear()
        check(root)
        assert len(walks) == 3
    if damage == "earlier":
        content, arrays = mapped.read_arrays(path)
        for changed in ({**content, "rules": [0]}, {"rules": content["rules"]}, {**content, "classes": None}):
            mapped.write_arrays(path, changed, arrays)
            check(root)
    if damage == "folder":
        path.unlink()
        path.mkdir()
        check(root)


FAILING: list[tuple[Any, str]] = [
    (os, "open"), (os, "replace"), (os, "fsync"), (os, "chmod"), (os, "mkdir"), (os, "stat"), (fcntl, "flock"),
    (mapped.mmap, "mmap"), (mapped, "open"), (mapped, "atomic_path"), (kept_listing, "exclusive"),
]  # fmt: skip


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE])
def test_whatever_fails_in_the_cache_folder_the_listing_is_right(
    root: Path, cache: Path, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kept_listing, "_LARGE", 10)
    for module, name in FAILING:
        plain = getattr(module, name, open)

        def fail(*given: Any, _plain: Any = plain, **named: Any) -> Any:
            about = given[0] if given else ""
            if hasattr(about, "fileno"):
                about = about.fileno()
            if isinstance(about, int):
                about = os.readlink(f"/proc/self/fd/{about}")
            if str(cache) in str(about):
                raise OSError(number, os.strerror(number))
            return _plain(*given, **named)

        for prepared in (False, True):
            shutil.rmtree(cache, ignore_errors=True)
            if prepared:
                check(root)
            with monkeypatch.context() as patch:
                patch.setattr(module, name, fail, raising=False)
                check(root)
                identify(open_source(str(root)))
            check(root)
            for line in capsys.readouterr().err.splitlines():
                assert line.startswith(
                    f"deit-fast: {cache}/folders: expected to keep the list of the 62 images of {root}"
                )


@pytest.mark.usefixtures("settled")
def test_a_cache_folder_that_is_none_costs_a_line(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEIT_FAST_CACHE", str(put(tmp_path / "file")))
    check(root)
    assert capsys.readouterr().err == ""  # of few images nobody has to know
    monkeypatch.setattr(kept_listing, "_LARGE", 10)
    check(root)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"deit-fast: {tmp_path}/file/folders: expected to keep the list of the 62 images of {root} ")


@pytest.mark.usefixtures("settled")
def test_what_folders_that_are_gone_left_is_removed(
    root: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(root, tmp_path / "copy", symlinks=True)
    identify(open_source(str(tmp_path / "copy")))
    before = set(cache.glob("folders/*"))
    shutil.rmtree(tmp_path / "copy")
    monkeypatch.setattr(kept_listing, "_LARGE", 10)
    check(root)
    (path,) = set(cache.glob("folders/*.listing"))
    assert path not in before
    assert all(path.stem in each.name for each in cache.glob("folders/*"))
    assert all(path.stem in each.name for each in cache.glob("folders/.*"))
    put(path.with_name(f".{path.name}.1-1.tmp"))  # of a process that was killed
    put(root / "ant" / "new.jpg")
    check(root)
    assert {each.suffix for each in cache.glob("folders/.*")} <= {".lock"}


@pytest.mark.usefixtures("settled")
def test_a_listing_is_small_and_its_memory_is_the_files(tmp_path: Path, cache: Path) -> None:
    for number in range(4000):
        name = f"n{number // 400:08}"
        put(tmp_path / name / f"{name}_{number:05}.JPEG", 1)
    source = open_source(str(tmp_path))
    (path,) = cache.glob("folders/*.listing")
    assert path.stat().st_size <= 30 * len(source)
    base: Any = source.labels
    while isinstance(base, np.ndarray):
        base = base.base
    with memoryview(base) as view:
        assert isinstance(view.obj, mapped.mmap.mmap)
    check(tmp_path)


def test_labels_and_annotations_are_watched_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pass_time(monkeypatch)
    flat = tmp_path / "flat" / "val"
    for number in range(4):
        put(flat / f"{number}.jpg")
    table = tmp_path / "flat" / "val.txt"
    table.write_text("0.jpg a\n1.jpg b\n2.jpg a\n3.jpg b\n")
    assert open_source(str(flat)).labels.tolist() == [0, 1, 0, 1]
    table.write_text("0.jpg a\n1.jpg b\n2.jpg a\n3.jpg a\n")
    assert open_source(str(flat)).labels.tolist() == [0, 1, 0, 0]
    (tmp_path / "flat" / "val.csv").write_text("0.jpg,b\n1.jpg,b\n2.jpg,b\n3.jpg,c\n")  # which comes first
    assert open_source(str(flat)).labels.tolist() == [0, 0, 0, 1]
    other = put(tmp_path / "other")
    other.write_text("a\nb\nc\nd\n")
    assert open_source(str(flat), labels=other).labels.tolist() == [0, 1, 2, 3]
    other.unlink()
    with pytest.raises(DataError, match=f"^{other}: expected a line for each image"):
        open_source(str(flat), labels=other)
    inat = tmp_path / "inat"
    images = [{"id": n, "file_name": f"train2018/{'ab'[n % 2]}/{n}.jpg"} for n in range(3)]
    for each in images:
        put(inat / str(each["file_name"]))

    def annotate(labels: list[int]) -> None:
        content = {"images": images, "annotations": [{"image_id": n, "category_id": k} for n, k in enumerate(labels)],
                   "categories": [{"id": k, "name": f"k{k}"} for k in range(5)]}  # fmt: skip
        (inat / "train2018.json").write_text(json.dumps(content))

    annotate([3, 2, 3])
    for _ in range(2):
        source = open_source(str(inat), "train")
        assert (source.classes, source.labels.tolist()) == (["k2", "k3"], [1, 0, 1])
        assert [source.name(n) for n in range(3)] == [str(inat / str(each["file_name"])) for each in images]
    annotate([2, 2, 3])
    assert open_source(str(inat), "train").labels.tolist() == [0, 0, 1]
    (inat / "categories.json").write_text(json.dumps([{"id": k, "name": f"new{k}"} for k in range(5)]))
    assert open_source(str(inat), "train").classes == ["new2", "new3"]
    (inat / "train2018").rename(inat / "gone")
    with pytest.raises(DataError, match="expected the first image that the annotations list"):
        open_source(str(inat), "train")


def as_if_new(place: Path, cache: Path) -> str:
    shutil.rmtree(cache)
    return identify(open_source(str(place))).digest


@pytest.mark.usefixtures("settled")
def test_of_few_images_any_other_size_is_seen(root: Path, cache: Path) -> None:
    known = {identify(open_source(str(root))).digest}
    assert identify(open_source(str(root))).digest in known
    for name in (*NAMES[::7], "bee/sub/x.png", "ant/linked/1.jpg"):
        with_its_times(root / name, lambda name=name: put(root / name, 999))
        found = identify(open_source(str(root))).digest
        assert found not in known
        assert found == identify(open_source(str(root))).digest
        known.add(found)
    assert found == as_if_new(root, cache)
    assert len(known) == 12


@pytest.mark.usefixtures("settled")
def test_of_many_images_a_part_is_asked(
    root: Path, cache: Path, walks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listed_files, "_ASKED_AGAIN", 10)  # of 62 images, every seventh
    before = identify(open_source(str(root)))
    asked, plain = [], os.stat
    monkeypatch.setattr(os, "stat", lambda path, **named: asked.append(str(path)) or plain(path, **named))
    assert identify(open_source(str(root))) == before
    names = [each for each in asked if each.endswith((".jpg", ".png"))]
    assert names == [name for name, _ in samples(root)[::7]]
    put(root / "ant/001.jpg", 999)
    assert identify(open_source(str(root))) == before  # which README says
    walks.clear()
    put(Path(names[3]), 999)
    changes = identify(open_source(str(root))).changes_from(before)
    assert changes == ["2 images of other content by their sizes or places"]  # all are asked then
    open_source(str(root))
    assert len(walks) == 3  # and the listing is not trusted any more
    put(root / "ant/002.jpg", 999)
    put(root / "ant/new.jpg")
    assert identify(open_source(str(root))).changes_from(before)[:2] == [
        "1 image added", "3 images of other content by their sizes or places",
    ]  # fmt: skip
    assert identify(open_source(str(root))).digest == as_if_new(root, cache)


@pytest.mark.usefixtures("settled")
def test_other_classes_or_labels_are_another_identity(root: Path, cache: Path) -> None:
    source = open_source(str(root))
    before = identify(source)
    source.labels = np.array([2, 1, 0])[source.labels]
    source.classes = source.classes[::-1]
    other = identify(source)
    assert other.digest != before.digest
    assert other.class_sizes == before.class_sizes[::-1]
    assert identify(open_source(str(root))) == before


def class_folders(root: Path) -> None:
    names = ["ant/1.jpg", "ant/sub/1.png", "ant/sub-2/x.jpg", "ant/Sub/y.jpg", "bee/1.JPEG", "Müll/ü.webp",
             "Mu\u0308ll2/u\u0308.jpg", "bee/10.jpg", "bee/9.jpg", "bee/.hidden/no.jpg", "bee/notes.txt"]  # fmt: skip
    for number, name in enumerate(names):
        put(root / "train" / name, 10 + number)
    os.symlink(root / "train" / "bee", root / "train" / "bee" / "again")
    put(root / "elsewhere" / "deep" / "z.jpg", 99)
    os.symlink(root / "elsewhere", root / "train" / "ant" / "linked")
    (root / "train" / "ant" / "empty").mkdir()


def numbered(root: Path) -> None:
    for label in range(12):
        for number in range(2):
            put(root / str(label) / f"{number}.png", 5 + label + number)


def odd_bytes(root: Path) -> None:
    put(root / "a" / os.fsdecode(b"\xff\xfe.jpg"), 3)
    put(root / "b" / "plain.jpg", 4)


def flat(root: Path) -> None:
    for number in range(5):
        put(root / "val" / f"ILSVRC2012_val_{number:08}.JPEG", 7 + number)
    lines = [f"ILSVRC2012_val_{number:08}.JPEG c{number % 2}\n" for number in range(5)]
    (root / "val.txt").write_text("".join(lines))


def flat_in_images(root: Path) -> None:
    for number in range(4):
        put(root / "val" / "images" / f"val_{number}.JPEG", 7 + number)
    lines = [f"val_{number}.JPEG\tn{number % 3}\t0\t0\t1\t1\n" for number in range(4)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))


def inaturalist(root: Path) -> None:
    keys = [("Plantae", 3), ("Aves", 1), ("Plantae", 3), ("Plantae", 2)]
    names = [f"train_val2018/{kingdom}/{key}/{number}.jpg" for number, (kingdom, key) in enumerate(keys)]
    for number, name in enumerate(names):
        put(root / name, 20 + number)
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    annotations = [{"image_id": number, "category_id": key} for number, (_, key) in enumerate(keys)]
    content = {"images": images, "annotations": annotations,
               "categories": [{"id": k, "name": f"k{k}", "genus": "g"} for k in (1, 2, 3)]}  # fmt: skip
    for split in ("train", "val"):
        (root / f"{split}2018.json").write_text(json.dumps(content))


# As computed before listings were kept, by which checkpoints know their data.
EARLIER: list[tuple[Callable[[Path], None], str | None, dict[str, Any], str]] = [
    (class_folders, "train", {}, "24df8acf561f09b3"),
    (numbered, None, {}, "f0d6fe7993040aa2"),
    (odd_bytes, None, {}, "d167519ff7e808db"),
    (flat, "val", {}, "d14638473a3e22bc"),
    (flat_in_images, "val", {}, "32b2ac36bb5c9686"),
    (inaturalist, "val", {}, "ef4aa98bee3ff325"),
    (inaturalist, "train", {"category": "genus"}, "1bf23a6ac022f427"),
]


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(("make", "split", "given", "digest"), EARLIER)
def test_identities_are_those_of_before(tmp_path: Path, make: Any, split: Any, given: Any, digest: str) -> None:
    make(tmp_path / "set")
    for _ in range(2):
        assert identify(open_source(str(tmp_path / "set"), split, **given)).digest.startswith(digest)
