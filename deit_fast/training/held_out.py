"""The training and validation images of data without a validation split: chosen once, and listed in val.json.

A resumed run holds out the images in its list, so images that were added later are trained on. If the list is missing,
the run chooses again, which gives the same images for the same data; a checkpoint identifies the images of both parts
(same_data.py).
"""

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from deit_fast.checkpoint.store import RunStore
from deit_fast.data.loader.broken import find_refused
from deit_fast.data.sources.base import Source, read_image
from deit_fast.data.sources.held_out import all_but, choose_held_out, find_listed
from deit_fast.data.sources.image_list import LIST_NAME, ImageList
from deit_fast.data.sources.salvage import SalvagedShards
from deit_fast.data.sources.subset import Subset
from deit_fast.recipe.sections import Data
from deit_fast.runtime.errors import DataError, RunError, printable
from deit_fast.runtime.files import atomic_path
from deit_fast.runtime.metrics_log import told
from deit_fast.runtime.object_store import MissingError, absolute_place
from deit_fast.runtime.world import World

_TRIED = 2_000  # images that are decoded before they are held out; beyond that, the evaluation reports a bad one
_READ = 256  # images that are read at a time


class HeldOut:
    """A source in two parts, and the list of the second part."""

    def __init__(self, source: Source, images: NDArray[np.int64], chosen: ImageList) -> None:
        self.train: Source = Subset(source, all_but(source, images))
        self.val: Source | None = Subset(copy.copy(source), images) if len(images) else None
        self.list = chosen

    def write(self, folder: Path) -> None:
        """Writes the list to the run folder, in the main process; on a full disk prints a line instead."""
        text, path = self.list.as_text(), folder / LIST_NAME
        with told(LIST_NAME):
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                with atomic_path(path) as temporary:
                    temporary.write_text(text, encoding="utf-8")


def hold_out(
    data: Data,
    source: Source,
    labels: str | Path | None,
    earlier: str | None,
    world: World,
    required: bool = False,
) -> tuple[HeldOut, list[str]]:
    """Splits a source into two parts as `data` says; returns lines about it. All processes call this together.

    labels: the source's file of labels, if one was named. earlier: path or URI at which a resumed run's list may be;
    None for a new run. required: whether all listed images must exist, as for a list that the user named. Raises
    DataError or RunError, in every process, where the list cannot be used.
    """
    images, lines, error = np.empty(0, np.int64), list[str](), None
    if world.is_main:
        try:
            images, lines = _find(data, source, earlier, required)
        except (DataError, RunError) as reason:
            error = reason
    images, lines, error = world.broadcast((images, lines, error))
    if error is not None:
        raise error
    place, file = absolute_place(source.uri), absolute_place(labels) if labels else None
    listed = list(Subset(source, images).listed_names()) if world.is_main else []
    chosen = ImageList(place, file, data.category, data.val_fraction, data.val_seed, listed)
    return HeldOut(source, images, chosen), lines


def list_of_run(folder: Path, store: RunStore | None, resume: str) -> str | None:
    """The place at which a resumed run's list may be; None for a run that starts over. resume: as in `train`."""
    if resume == "never":
        return None
    if resume != "auto":
        return str(Path(resume).absolute().parent.parent / LIST_NAME)
    return f"{store.uri}/{LIST_NAME}" if store is not None else str(folder / LIST_NAME)


def _find(data: Data, source: Source, earlier: str | None, required: bool) -> tuple[NDArray[np.int64], list[str]]:
    """The images to hold out, int64 [n], and lines about them."""
    known = None if earlier is None else read_list(earlier) if required else _read_earlier(earlier)
    if known is not None and (known.fraction, known.seed) == (data.val_fraction, data.val_seed):
        images, missing = find_listed(source, known.images)
        if missing and required:
            raise DataError(
                f"--val {earlier}: expected its {len(known.images)} images in {source.uri}, {len(missing)} are not "
                f"there, {printable(missing[0])} first; --data names the data that they were held out of"
            )
        lines = [f"{earlier}: {len(missing)} of its images are gone, {printable(missing[0])} first"] if missing else []
    else:
        images, unfit = _choose(data, source)
        lines = [f"{printable(source.name(each))}: cannot be evaluated; another one is held out" for each in unfit[:3]]
    return images, [*lines, _describe(data, source, images)]


def read_list(place: str) -> ImageList:
    """The list at a path or URI. Raises DataError where the content is no list, RunError where it is unreadable."""
    try:
        return ImageList.read(place)
    except OSError as error:
        raise RunError(f"{place}: expected a readable list of validation images ({error.strerror})") from error


def _read_earlier(place: str) -> ImageList | None:
    try:
        return read_list(place)
    except MissingError:
        return None
    except RunError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return None
        raise


def _describe(data: Data, source: Source, images: NDArray[np.int64]) -> str:
    sizes = np.bincount(source.labels, minlength=len(source.classes))
    single = int((sizes == 1).sum())
    alone = f"; {single} {'class has' if single == 1 else 'classes have'} one image, which is trained on"
    if not len(images):
        return f"no validation images: no class of {source.uri} has two"
    return (
        f"validation images: {len(images)} of the {len(source)} in {source.place}, held out of training "
        f"(data.val_fraction={data.val_fraction:g}, {LIST_NAME} lists them){alone if single else ''}"
    )


def _choose(data: Data, source: Source) -> tuple[NDArray[np.int64], list[int]]:
    """The images to hold out, int64 [n], and the unusable ones, which others of their class replace."""
    unfit = np.flatnonzero(source.lost).tolist() if isinstance(source, SalvagedShards) else []
    known = len(unfit)
    tried: set[int] = set()
    while True:
        images = choose_held_out(source, data.val_fraction, data.val_seed, unfit)
        new = sorted(set(images.tolist()) - tried)
        if len(images) > _TRIED or not (bad := _find_bad(source, new)):
            return images, unfit[known:]
        tried |= set(new)
        unfit += bad


def _find_bad(source: Source, images: list[int]) -> list[int]:
    """The images among these that cannot be read or decoded."""

    def load(index: int) -> NDArray[np.uint8] | None:
        try:
            return source.prepare(index, read_image(source, index))[0]
        except DataError:
            return None

    bad = []
    with ThreadPoolExecutor(source.readers) as pool:
        for start in range(0, len(images), _READ):
            part = images[start : start + _READ]
            loaded = list(pool.map(load, part))
            sound = [place for place, each in enumerate(loaded) if each is not None]
            refused = find_refused([each for each in loaded if each is not None], None, torch.device("cpu"))
            lost = {sound[place] for place in refused} | {place for place, each in enumerate(loaded) if each is None}
            bad += [part[place] for place in sorted(lost)]
    return bad
