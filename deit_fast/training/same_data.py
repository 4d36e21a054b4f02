"""Checks that all processes of a run have the same data, and that a resumed run has the data it began with."""

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deit_fast.checkpoint.state import ANEW, TrainState
from deit_fast.data.sources.base import Source
from deit_fast.data.sources.identity import Identity, identify
from deit_fast.data.sources.splits import Split
from deit_fast.runtime.errors import DataError
from deit_fast.runtime.world import World

_SHOWN = 4  # kinds of change in a message

_WORDS: dict[Split, str] = {"train": "training", "val": "validation"}


def agree_on_data(source: Source, val_source: Source | None, world: World) -> dict[Split, Identity]:
    """The identities of the training images and, if there are any, of the validation images; a collective.

    One process of each node computes them, which needs the sizes of all files. The other processes only compare their
    names and labels with that process's. Raises DataError, in every process alike, where a process has other images
    than the main process. Local copies that differ by one image would give the processes batches in different orders.
    """
    sources: dict[Split, Source] = {"train": source}
    if val_source is not None:
        sources["val"] = val_source
    found = _identify(sources) if world.rank == world.node_ranks[0] else {}
    seen = world.gather(_digests(found))
    if not all(seen):
        if _are_alike(sources, [digests for digests in seen if digests], world):
            return world.broadcast(found)
        found = found or _identify(sources)
        seen = world.gather(_digests(found))
    other = next((rank for rank, digests in enumerate(seen) if digests != seen[0]), None)
    if other is None:
        return found
    places = world.gather((socket.gethostname(), {split: each.uri for split, each in sources.items()}, found))
    host, uris, theirs = places[other]
    ours = places[0][2]
    split = next(split for split in _WORDS if seen[other].get(split) != seen[0].get(split))
    if split in theirs and split in ours:
        changes = _describe(theirs[split], ours[split]) or "they are in shards on one of the two alone"
    else:
        changes = "there are none" if split in ours else "rank 0 has none"
    raise DataError(
        f"{uris.get(split, uris['train'])} (rank {other}, {host}): expected the {_WORDS[split]} images of rank 0 "
        f"({places[0][0]}): {changes}; the processes of a run need the same data"
    )


def _identify(sources: Mapping[Split, Source]) -> dict[Split, Identity]:
    return {split: identify(each) for split, each in sources.items()}


def _digests(identities: Mapping[Split, Identity]) -> dict[Split, str]:
    return {split: each.digest for split, each in identities.items()}


def _are_alike(sources: Mapping[Split, Source], digests: Sequence[Mapping[Split, str]], world: World) -> bool:
    """Whether all nodes have equal digests, and each process the names and labels of its node's first process."""
    outlines = world.gather((world.node_ranks[0], {split: each.outline() for split, each in sources.items()}))
    return all(each == digests[0] for each in digests) and all(seen == outlines[first][1] for first, seen in outlines)


def say_if_validated_on_training(identities: Mapping[Split, Identity]) -> list[str]:
    """A line if the validation images are the training images: of the same names, classes and sizes."""
    if "val" not in identities or identities["val"].digest != identities["train"].digest:
        return []
    return ["validation images: they are the training images, so that their scores say nothing about new ones"]


def check_same_data(
    identities: Mapping[Split, Identity], saved: Mapping[str, Any], uris: Mapping[Split, str], allow: bool, path: Path
) -> list[str]:
    """Lines about differences from the data of the checkpoint `saved` at `path`, if `allow` permits them.

    A checkpoint of an earlier version has no identity of its data, which a line says. Added or dropped validation data
    are a change of the command, and are accepted. Raises DataError where the data differ and `allow` is not set.
    """
    if "data" not in saved:
        return [f"{path} has no digest of its data (an earlier version wrote it): they are not compared"]
    notes = []
    for split, now in identities.items():
        before = _saved_identity(saved, split)
        if before is None or before.digest == now.digest:
            continue
        changes = _describe(now, before)
        if not changes:
            notes.append(
                f"{path} knows its {_WORDS[split]} images by name (an earlier version wrote it), an index of shards by "
                "size: they are compared by their classes and by how many there are of each"
            )
            continue
        if not allow:
            raise DataError(
                f"{uris[split]}: expected the {_WORDS[split]} images that {path} was trained with: {changes}; "
                "data.may_change=true goes on all the same, another --out starts afresh"
            )
        notes.append(f"goes on with other {_WORDS[split]} images than before: {changes}")
    return notes


def forget_what_changed(state: TrainState, identities: Mapping[Split, Identity], saved: Mapping[str, Any]) -> None:
    """Removes from a loaded state what belongs to the earlier data: indices of bad images, and scores."""
    pairs = {split: (now, _saved_identity(saved, split)) for split, now in identities.items()}
    changed = {split for split, (now, before) in pairs.items() if before is not None and now.changes_from(before)}
    if "train" in changed:
        state.bad_images = {}
    if "val" in changed:
        state.best_top1, state.scores, state.scored_step = -1.0, {}, ANEW


def _saved_identity(saved: Mapping[str, Any], split: Split) -> Identity | None:
    plain = saved.get("data", {}).get(split)
    return None if plain is None else Identity.from_plain(plain)


def _describe(now: Identity, before: Identity) -> str:
    found = now.changes_from(before)
    return ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
