"""The index of a tar shard, which DALI's wds2idx makes: where its samples are, and their labels."""

import hashlib
import os
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.samples import RULE, folder_of, pair_members, parse_label, split_name
from deit_fast.runtime.files import atomic_path, cache_folder
from deit_fast.runtime.patience import may_pass, patiently

_COMPONENT = re.compile(r"(.+?) (\d+) (\d+) (.*?\1)(?: |$)")  # suffix, offset, size, name that ends in the suffix
_BLOCK = 512


class Shard(NamedTuple):
    """The n samples of a shard, in its order."""

    members: list[str]
    """Names of the image members."""
    places: NDArray[np.int64]
    """[n, 2], offset and size of each image in the shard."""
    labels: NDArray[np.int64]
    """[n], the classes; indices into `folders` where there are some."""
    folders: tuple[str, ...] = ()
    """Names of the folders that the members are in, where these are the only labels."""


def open_shard(shard: Path, label_of: Mapping[str, int] = MappingProxyType({})) -> Shard:
    """Read a shard's index and labels. The index is made where there is none, or one older than the shard or unlike it.

    It is kept beside the shard, or else in the cache folder. Several processes may do so at once. label_of: classes
    that labels may name. Raises ValueError, one line, for a shard that is not whole or not made of images with labels,
    StorageError where the storage fails.
    """
    try:
        return patiently(lambda: _read_or_build_index(shard, label_of), str(shard))
    except OSError as error:
        raise ValueError(f"{shard}: expected a readable .tar shard ({error.strerror or error})") from None


def _read_or_build_index(shard: Path, label_of: Mapping[str, int]) -> Shard:
    for index in _index_places(shard):
        if index.exists() and index.stat().st_mtime_ns >= shard.stat().st_mtime_ns:
            try:
                return _parse_index(shard, index.read_text(), label_of, complete=False)
            except ValueError:  # of an older format or another version of the shard
                continue
    return _build_index(shard, label_of)


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
    samples = [[name for _, _, _, name in _COMPONENT.findall(line)] for line in lines]
    if version != f"v1.2 {len(lines)}" or not all(samples):
        return []
    names: list[str] = []
    for sample in samples:
        try:
            names += [pair.image or sample[0] for pair in pair_members(sample)]
        except ValueError:
            names.append(sample[0])
    return names if len(set(names)) == len(names) else []


def _build_index(shard: Path, label_of: Mapping[str, int]) -> Shard:
    """Make the shard's index with DALI's wds2idx and read it; kept where it can be written, if the shard is sound."""
    try:
        from wds2idx import IndexCreator
    except ImportError:
        raise ValueError(f"{shard}: expected NVIDIA DALI, whose wds2idx indexes shards; it is not installed") from None
    places = _index_places(shard)
    failure: OSError | None = None
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
                return _parse_index(shard, temporary.read_text(), label_of, complete=True)
        except OSError as error:  # a full disk, say
            failure = error
    if failure is not None and may_pass(failure):
        raise failure
    raise ValueError(f"{shard}: expected to write its index as {places[0]} or {places[1]}, and can do neither")


def _writable(place: Path) -> bool:
    """Whether a file can be made there. A folder without any write bit is read-only, to root too."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        return os.access(place.parent, os.W_OK) and bool(place.parent.stat().st_mode & 0o222)
    except OSError:
        return False


def _parse_index(shard: Path, text: str, label_of: Mapping[str, int], complete: bool) -> Shard:
    """Read a v1.2 index (one sample a line: suffix, offset, size, name of every member) and the labels it points to.

    complete: the index was just made, so what follows its last member may be members it leaves out (hidden files), but
    the shard has to end as tar files do.
    """
    version, *lines = text.rstrip("\n").split("\n")
    if version != f"v1.2 {len(lines)}":
        raise ValueError(f"{shard}: expected an index that starts with 'v1.2 {len(lines)}', found {version!r}")
    members, labels = [], list[int]()
    places, end, unlabelled = list[tuple[int, int]](), 0, ""
    with open(shard, "rb") as file:
        descriptor = file.fileno()
        for line in lines:
            found: dict[str, tuple[int, int]] = {}
            for _, offset, size, name in _COMPONENT.findall(line):
                if name in found:  # which label belongs to which image is then anybody's guess
                    raise ValueError(f"{shard}: expected every name once, {name} is there twice in a row")
                found[name] = _after_long_name(descriptor, int(offset), name), int(size)
                end = max(end, sum(found[name]))
            try:
                pairs = pair_members(list(found))
            except ValueError as error:
                raise ValueError(f"{shard}: expected one image and its label for a key, {error}") from None
            for image, label in pairs:
                if image is None:
                    raise ValueError(unlabelled or _unpaired(shard, line.split(" ")[3], line.split(" ")[0], "image"))
                if label is None:
                    ending = split_name(image)[1] if len(pairs) == 1 else image.rpartition(".")[2]
                    unlabelled = unlabelled or _unpaired(shard, image, ending, "cls")
                else:
                    labels.append(_read_label(shard, descriptor, *found[label], label, image, label_of))
                members.append(image)
                places.append(found[image])
        _refuse_truncated(shard, descriptor, end, complete)
    folders = [folder_of(member) for member in members]
    if unlabelled and (labels or not all(folders)):
        raise ValueError(unlabelled)
    names = tuple(sorted(set(folders))) if unlabelled else ()
    index_of = {name: index for index, name in enumerate(names)}
    numbers = [index_of[folder] for folder in folders] if unlabelled else labels
    return Shard(members, np.array(places, np.int64).reshape(-1, 2), np.array(numbers, np.int64), names)


def _unpaired(shard: Path, member: str, suffix: str, lacking: str) -> str:
    key = member.removesuffix(f".{suffix}")
    return f"{shard}: expected KEY.jpg and KEY.cls side by side, {key} has no {lacking} ({RULE})"


def _read_label(
    shard: Path, descriptor: int, offset: int, size: int, name: str, image: str, label_of: Mapping[str, int]
) -> int:
    """The class in a label's member, read with its tar header, which tells whether the index fits the shard."""
    ending = f".{name.rpartition('.')[2]}"
    data = os.pread(descriptor, _BLOCK + size, offset - _BLOCK)
    if len(data) < _BLOCK + size or _member_size(data) != size:
        raise ValueError(
            f"{shard}: expected the {ending} of {image} at byte {offset}; the shard is truncated or compressed"
        )
    try:
        return parse_label(name, data[_BLOCK:], label_of)
    except ValueError as error:
        by_name = "" if label_of else " (to give classes by name, name all of them in classes.txt beside the shards)"
        raise ValueError(f"{shard}: expected a class number in the {ending} of {image}, {error}{by_name}") from None


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
