"""Chooses the images that an evaluation scores, and reports the choice, above all if training used these images."""

import copy
import os
from contextlib import suppress
from pathlib import Path

from deit_fast.convert.detect import Weights
from deit_fast.convert.locate import newest_run
from deit_fast.data.sources.base import Source
from deit_fast.data.sources.held_out import all_but, choose_held_out, find_listed
from deit_fast.data.sources.identity import Identity, identify
from deit_fast.data.sources.image_list import LIST_NAME, ImageList
from deit_fast.data.sources.open import find_validation, open_source
from deit_fast.data.sources.place import split_place
from deit_fast.data.sources.splits import Split, split_of, split_of_shard
from deit_fast.data.sources.subset import Subset
from deit_fast.runtime.errors import DataError, RunError
from deit_fast.runtime.object_store import MissingError, absolute_place, check_writable, is_remote, list_objects

_MOST = 0.5  # two sets of images count as the same if at least this fraction has equal sizes


def open_scored(
    checkpoint: str, weights: Weights, data: str | None, category: str, labels: str | Path | None
) -> tuple[Source, list[str]]:
    """The images for an evaluation of a checkpoint, and lines about the choice.

    These are the validation split of `data`; if it has none, the images of `data` that the checkpoint's run held out;
    else all images there. Without `data`, they are the images that the run held out of its own data. checkpoint: a
    run's folder or a file, as the user named it. Raises DataError, RunError.
    """
    if data is None:
        listed = _find_list(checkpoint)
        if listed is None:
            raise RunError(f"{checkpoint}: expected --data, as no list of validation images ({LIST_NAME}) is beside it")
        place, held = listed
        return held.open(open_source, place), [f"validation images: those that {place} lists, of {held.data}"]
    if find_validation(data) is None and _split_in(data.rstrip("/")) not in ("val", "test"):
        found = _open_held_out(checkpoint, weights, data, category, labels)
        if found is not None:
            return found
    source = open_source(data, "val", category, labels=labels)
    return source, _warn(weights, data, source)


def open_trained(run: Path, data: str, category: str, labels: str | None = None) -> Source:
    """The training images of a run's folder: those of `data` without the images that the run held out.

    labels: the file of labels that the run was given, which are the training images' own where no validation split
    is beside them. Raises DataError, RunError.
    """
    listed = _find_list(str(run))
    beside = listed is None and find_validation(data) is not None
    whole = open_source(data, "train", category, labels=None if beside else labels)
    if listed is None:
        return whole
    return Subset(whole, all_but(whole, find_listed(whole, listed[1].images)[0]))


def _find_list(checkpoint: str) -> tuple[str, ImageList] | None:
    """Place and content of the list of held-out images of a checkpoint's run; None where there is none."""
    run = _run_of(checkpoint)
    try:
        return (place := f"{run}/{LIST_NAME}"), ImageList.read(place)
    except (FileNotFoundError, NotADirectoryError, MissingError):
        return None
    except OSError as error:
        raise RunError(f"{place}: expected a readable list of validation images ({error.strerror})") from None


def _run_of(checkpoint: str) -> str:
    """The folder of a checkpoint's run: the named folder itself, or the parent of the checkpoints/ folder."""
    place = checkpoint.rstrip("/") if is_remote(checkpoint) else os.path.abspath(checkpoint)
    folder, name = split_place(place)
    above, inner = split_place(folder)
    if "checkpoints" in (name, inner):
        return folder if name == "checkpoints" else above
    if not is_remote(place):
        return checkpoint
    with suppress(RunError):
        check_writable(place)  # a read-only store holds no run
        return newest_run(place, list_objects(place)[0])
    return os.devnull


def _is_same_place(kept: str, given: str) -> bool:
    """Whether two paths or URIs, the first of them from a run, name one place; ".." may stand in either."""
    first, second = (os.path.normpath(absolute_place(each)) for each in (kept, given))
    return first == second


def _open_held_out(
    checkpoint: str,
    weights: Weights,
    data: str,
    category: str,
    labels: str | Path | None,
) -> tuple[Source, list[str]] | None:
    """The images of `data` that the checkpoint's run held out; None if it held out none, or images of other data.

    Raises DataError where only some of the images are unchanged.
    """
    chosen, listed = weights.recipe.data, _find_list(checkpoint)
    if listed is None and not chosen.val_fraction:
        return None
    if labels is None and listed is not None and _is_same_place(listed[1].data, data):
        labels = listed[1].labels  # the file that the run was given
    whole = open_source(data, "train", category, labels=labels)
    if listed is not None:
        images, missing = find_listed(whole, listed[1].images)
        words = f"those that {listed[0]} lists"
    else:
        images, missing = choose_held_out(whole, chosen.val_fraction, chosen.val_seed), []
        words = f"those that were held out of training, data.val_fraction={chosen.val_fraction:g}"
    if not len(images):
        return None
    part = Subset(copy.copy(whole), images)
    before, now = _trained_on(weights, "val"), identify(part)
    if before is None and listed is not None and not missing:
        return part, [f"validation images: {words}"]
    if before is None:
        return None
    if now.digest == before.digest:
        return part, [f"validation images: {words}"]
    if before.shares(now) >= _MOST and _overlap(weights, whole):
        raise DataError(
            f"{data}: expected the {sum(before.images)} validation images that {checkpoint} held out: "
            f"{', '.join(now.changes_from(before)[:3])}; restore them, or name other images"
        )
    return None


def _warn(weights: Weights, data: str, source: Source) -> list[str]:
    """A line if the place has no validation split: it says whether training used these images."""
    split = _split_in(source.place)
    if find_validation(data) is not None and split != "train":
        return []
    before = _trained_on(weights, "train")
    if before is not None and identify(source).digest == before.digest:
        return [f"{source.place}: it was trained on these {len(source)} images: no score of new ones"]
    if _overlap(weights, source):
        return [f"{source.place}: it was trained on some of these {len(source)} images, which are all scored"]
    if split in ("val", "test"):
        return []
    return [f"{source.place} has no validation split: all of its {len(source)} images are scored"]


def _split_in(place: str) -> str | None:
    """The split in the name of a place: "val" for /data/imagenet/val."""
    name = split_place(place)[1]
    return split_of(name) or split_of_shard(name)


def _overlap(weights: Weights, source: Source) -> bool:
    """Whether the checkpoint was trained on some of these images, as far as their names and sizes tell.

    Images of shards have no names there, and two equal sizes prove nothing.
    """
    before = _trained_on(weights, "train")
    if before is None:
        return False
    now = identify(source)
    return now.shares(before) > (0 if now.key == "names" else _MOST)


def _trained_on(weights: Weights, split: Split) -> Identity | None:
    try:
        return Identity.from_plain(dict(weights.data[split]))
    except (KeyError, TypeError, ValueError):
        return None
