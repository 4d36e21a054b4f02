"""WebDataset tar shards: their samples are found through the index that DALI's wds2idx makes."""

import hashlib
import os
import re
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.base import IMAGE_SUFFIXES, Source, read_bytes
from deit_fast.data.sources.classes import check_labels, read_class_names
from deit_fast.data.sources.shard_names import choose_shards, expand_braces, has_braces, refuse_gaps, refuse_missing
from deit_fast.data.sources.source_format import Request, SourceFormat
from deit_fast.data.sources.splits import refuse_mixed
from deit_fast.runtime.errors import DataError, printable
from deit_fast.runtime.files import atomic_path, cache_folder
from deit_fast.runtime.progress import progress

_COMPONENT = re.compile(r"(.+?) (\d+) (\d+) (.*?\1)(?: |$)")  # suffix, offset, size, name that ends in the suffix
_BLOCK = 512
OPENING_THREADS = 8
MAX_CLASSES = 10_000_000


class TarShards(Source):
    """WebDataset shards of KEY.jpg and KEY.cls (the class, as an ASCII integer), in the order given.

    classes.txt beside the first shard names the classes; without it they are "0" up to the largest label.
    """

    def __init__(self, uri: str, shards: Sequence[Path]) -> None:
        opened = self._open(shards)
        self._shards = [str(shard) for shard in shards]
        self._members = [member for shard in opened for member in shard.members]
        self._shard_of = np.repeat(np.arange(len(shards)), [len(shard.members) for shard in opened])
        self._places = np.concatenate([shard.places for shard in opened])
        labels = np.concatenate([shard.labels for shard in opened])
        names, largest_label = shards[0].parent / "classes.txt", int(labels.max())
        if names.is_file():
            classes = read_class_names(names)
            check_labels(names, classes, largest_label)
        else:
            classes = [str(label) for label in range(largest_label + 1)]
        super().__init__(uri, classes, labels)
        self.counted = not names.is_file()

    def read(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as stored, uint8 [bytes]. Raises DataError where its shard cannot be read or ends before."""
        offset, size = self._places[index].tolist()
        data = read_bytes(self._shards[self._shard_of[index]], offset, size)
        if len(data) < size:
            name = printable(self.name(index))
            raise DataError(f"{name}: expected {size} bytes, found {len(data)}; the shard changed")
        return data

    def name(self, index: int) -> str:
        return f"{self._shards[self._shard_of[index]]}:{self._members[index]}"

    def _open(self, shards: Sequence[Path]) -> list["Shard"]:
        try:
            with ThreadPoolExecutor(OPENING_THREADS) as pool:
                return list(progress(pool.map(open_shard, shards), len(shards), "open shards"))
        except ValueError as error:
            raise DataError(str(error)) from None


class Shard(NamedTuple):
    """The n samples of a shard, in its order."""

    members: list[str]
    """Names of the image members."""
    places: NDArray[np.int64]
    """[n, 2], offset and size of each image in the shard."""
    labels: NDArray[np.int64]
    """[n], the classes."""


def open_shard(shard: Path) -> Shard:
    """Read a shard's index and labels. The index is made where there is none, or one older than the shard or unlike it.

    It is kept beside the shard, or else in the cache folder. Several processes may do so at once. Raises ValueError,
    one line, for a shard that is not whole or not made of KEY.jpg and KEY.cls.
    """
    try:
        for index in _index_places(shard):
            if index.exists() and index.stat().st_mtime_ns >= shard.stat().st_mtime_ns:
                try:
                    return _parse_index(shard, index.read_text(), complete=False)
                except ValueError:  # of an older format or another version of the shard
                    continue
        return _build_index(shard)
    except OSError as error:
        raise ValueError(f"{shard}: expected a readable .tar shard ({error.strerror or error})") from None


def _index_places(shard: Path) -> tuple[Path, Path]:
    """Beside the shard, where DALI's own tools look, and in the cache folder."""
    key = hashlib.sha256(f"{shard.absolute()} {shard.stat().st_size}".encode(errors="surrogateescape")).hexdigest()[:16]
    return shard.with_suffix(".idx"), cache_folder() / f"{shard.stem}-{key}.idx"


def indexed_names(shard: Path) -> list[str]:
    """The name of every sample's image by the index beside the shard; none where there is no index, or no sound one."""
    try:
        version, *lines = _index_places(shard)[0].read_text().rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError):
        return []
    samples = [[(suffix, name) for suffix, _, _, name in _COMPONENT.findall(line)] for line in lines]
    if version != f"v1.2 {len(lines)}" or not all(samples):
        return []
    names = [
        next((name for suffix, name in sample if f".{suffix}".lower() in IMAGE_SUFFIXES), sample[0][1])
        for sample in samples
    ]
    return names if len(set(names)) == len(names) else []


def _build_index(shard: Path) -> Shard:
    """Make the shard's index with DALI's wds2idx and read it; kept where it can be written, if the shard is sound."""
    try:
        from wds2idx import IndexCreator
    except ImportError:
        raise ValueError(f"{shard}: expected NVIDIA DALI, whose wds2idx indexes shards; it is not installed") from None
    places = _index_places(shard)
    for place in filter(_writable, places):
        try:
            with atomic_path(place) as temporary:  # whoever else is writing it
                try:
                    # An absolute path, for GNU tar takes "host:shard.tar" for another machine's.
                    with IndexCreator(str(shard.absolute()), str(temporary), verbose=False) as creator:
                        creator.create_index()
                except (ValueError, IndexError):
                    raise ValueError(
                        f"{shard}: expected an uncompressed .tar of KEY.jpg and KEY.cls, found no members"
                    ) from None
                return _parse_index(shard, temporary.read_text(), complete=True)
        except OSError:  # a full disk, say
            continue
    raise ValueError(f"{shard}: expected to write its index as {places[0]} or {places[1]}, and can do neither")


def _writable(place: Path) -> bool:
    """Whether a file can be made there. A folder without any write bit is read-only, to root too."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        return os.access(place.parent, os.W_OK) and bool(place.parent.stat().st_mode & 0o222)
    except OSError:
        return False


def _parse_index(shard: Path, text: str, complete: bool) -> Shard:
    """Read a v1.2 index (one sample a line: suffix, offset, size, name of every member) and the labels it points to.

    complete: the index was just made, so what follows its last member may be members it leaves out (hidden files), but
    the shard has to end as tar files do.
    """
    version, *lines = text.rstrip("\n").split("\n")
    if version != f"v1.2 {len(lines)}":
        raise ValueError(f"{shard}: expected an index that starts with 'v1.2 {len(lines)}', found {version!r}")
    members, labels = [], np.empty(len(lines), np.int64)
    places = np.empty((len(lines), 2), np.int64)
    end = 0
    with open(shard, "rb") as file:
        descriptor = file.fileno()
        for sample, line in enumerate(lines):
            image = label = None
            named: set[str] = set()
            for suffix, offset, size, name in _COMPONENT.findall(line):
                place = _after_long_name(descriptor, int(offset), name), int(size)
                end = max(end, sum(place))
                if name in named:  # which label belongs to which image is then anybody's guess
                    raise ValueError(f"{shard}: expected every name once, {name} is there twice in a row")
                named.add(name)
                if suffix == "cls":
                    label = place
                elif image is None and f".{suffix}".lower() in IMAGE_SUFFIXES:
                    image = place
                    members.append(name)
            if image is None or label is None:
                key = line.split(" ")[3].removesuffix("." + line.split(" ")[0])
                lacking = "image" if image is None else "cls"
                raise ValueError(f"{shard}: expected KEY.jpg and KEY.cls side by side, {key} has no {lacking}")
            places[sample] = image
            labels[sample] = _read_label(shard, descriptor, *label, name=members[sample])
        _refuse_truncated(shard, descriptor, end, complete)
    return Shard(members, places, labels)


def _read_label(shard: Path, descriptor: int, offset: int, size: int, name: str) -> int:
    """The class in a .cls member, read together with its tar header, which tells whether the index fits the shard."""
    data = os.pread(descriptor, _BLOCK + size, offset - _BLOCK)
    if len(data) < _BLOCK + size or _member_size(data) != size:
        raise ValueError(f"{shard}: expected the .cls of {name} at byte {offset}; the shard is truncated or compressed")
    text = data[_BLOCK:].decode("latin-1").strip()
    if not (text.isascii() and text.isdigit() and int(text[:20]) < MAX_CLASSES):
        raise ValueError(f"{shard}: expected a class number in the .cls of {name}, found {text[:40]!r}")
    return int(text)


def _after_long_name(descriptor: int, offset: int, name: str) -> int:
    """Where a member's data is: for names that need a header of their own, wds2idx 2.4 points to the name instead."""
    if len(os.fsencode(name)) < 100:
        return offset
    while (header := os.pread(descriptor, _BLOCK, offset - _BLOCK))[156:157] in (b"L", b"K", b"x", b"g"):
        offset += _BLOCK + _whole_blocks(_member_size(header))
    return offset


def _member_size(header: bytes) -> int:
    """The size field of a tar header, -1 where there is no number."""
    try:
        return int(header[124:136].strip(b" \0"), 8)
    except ValueError:
        return -1


def _whole_blocks(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _refuse_truncated(shard: Path, descriptor: int, end: int, complete: bool) -> None:
    """Tar files end in blocks of zeros; a shard cut between two members would otherwise only lose samples."""
    size = os.fstat(descriptor).st_size
    after = os.pread(descriptor, _BLOCK, _whole_blocks(end))
    last = os.pread(descriptor, _BLOCK, max(size - _BLOCK, 0))
    ends = after == bytes(_BLOCK) or (complete and _is_header(after) and last == bytes(_BLOCK))
    if end > size or not ends:
        raise ValueError(f"{shard}: expected a whole tar file, found it cut off at {size} bytes")


def _is_header(block: bytes) -> bool:
    """Whether a block is the header of a member, by its checksum."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _in_folder(request: Request) -> list[Path]:
    return sorted(request.path / name for name in request.files if name.endswith(".tar"))


def _by_glob(request: Request) -> list[Path]:
    return sorted(Path(match) for match in glob(str(request.path)) if match.endswith(".tar"))


def _recognises(request: Request) -> bool:
    """A folder of shards, a shard, a range of them in braces, or a glob that finds some."""
    if request.path.is_dir():
        return bool(_in_folder(request))
    if request.path.is_file():
        return request.path.suffix == ".tar"
    return has_braces(request.uri) or bool(_by_glob(request))


def _open(request: Request) -> Source:
    uri, path = request.uri, request.path
    if path.is_dir():
        shards = choose_shards(uri, _in_folder(request), request.split)
    elif path.is_file():
        shards = [path]
    elif has_braces(uri):
        names = expand_braces(str(path))
        refuse_missing(uri, names, [name for name in names if not os.path.exists(name)])
        shards = [Path(name) for name in names]
    else:
        shards = _by_glob(request)
        refuse_mixed(uri, [shard.name for shard in shards])
        refuse_gaps(shards)
    return request.open_shards(uri, shards)


SOURCE = SourceFormat(recognises=_recognises, open=_open, general=True)
