"""Merges the index entries of several shards into one index, with labels in one common list of classes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.classes import check_labels, order_classes
from deit_fast.data.sources.shard_index import (
    LabelKind,
    ShardEntry,
    ShardIndex,
    digest_rows,
    make_index,
    without_labels,
)
from deit_fast.runtime.errors import DataError


class Part(NamedTuple):
    """The part of an index that belongs to one shard."""

    entry: ShardEntry
    rows: NDArray[np.void]
    """ROW [n]. The labels are indices into `folders` where folders are the labels."""
    folders: tuple[str, ...] = ()
    """Names of the folders of the images, where these are the only labels."""
    by_name: bool = False
    """Whether a label was given as the name of a class."""


def merge_parts(parts: Sequence[Part], shards: Sequence[str], named: list[str]) -> ShardIndex:
    """The index of these shards, in their order.

    shards: their paths or URIs, for messages. named: the classes of a classes.txt, [] without such a file.

    Raises DataError where some shards have folders for labels and others numbers, where all images lie in one folder,
    and for a folder or a label that classes.txt lacks.
    """
    kind: LabelKind = "names" if any(part.by_name for part in parts) else "numbers"
    classes = named
    if any(part.folders for part in parts):
        kind, classes = "folders", _folder_classes(parts, shards, named)
        parts = [_renumber(part, classes) for part in parts]
    rows = np.concatenate([part.rows for part in parts])
    if named:
        check_labels(_classes_beside(shards[0]), named, int(rows["label"].max(initial=0)))
    return make_index([part.entry for part in parts], rows, classes, bool(named), kind)


def _folder_classes(parts: Sequence[Part], shards: Sequence[str], named: list[str]) -> list[str]:
    """The classes where folders are the labels."""
    odd = next((number for number, part in enumerate(parts) if len(part.rows) and not part.folders), None)
    if odd is not None:
        one = next(number for number, part in enumerate(parts) if part.folders)
        raise DataError(f"{shards[one]}: expected labels (KEY.cls) as in {shards[odd].rpartition('/')[2]}, found none")
    folders = sorted({part.folders[label] for part in parts for label in np.unique(part.rows["label"]).tolist()})
    unknown = sorted(set(folders) - set(named)) if named else []
    if unknown:
        where = _classes_beside(shards[0])
        raise DataError(f"{where}: expected the names of all folders in the shards, {unknown[0]!r} is not there")
    classes = named or order_classes(folders)
    if len(classes) == 1:
        raise without_labels(shards[0], classes[0])
    return classes


def _classes_beside(shard: str) -> str:
    return f"{shard.rpartition('/')[0]}/classes.txt"


def _renumber(part: Part, classes: list[str]) -> Part:
    """The part with its labels as indices into `classes`."""
    if part.folders == tuple(classes):
        return part
    label_of = {name: label for label, name in enumerate(classes)}
    rows = part.rows.copy()
    rows["label"] = np.array([label_of.get(name, 0) for name in part.folders], np.uint32)[rows["label"]]
    return Part(part.entry._replace(digest=digest_rows(rows)), rows, tuple(classes))
