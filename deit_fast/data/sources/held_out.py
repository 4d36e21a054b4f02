"""Which training images are held out for validation, where a data set has no validation split.

The choice depends on the images' names, their classes and a seed alone: not on the order in which they are listed, nor
on how many processes ask. A larger share holds out the same images and more. An image that comes or goes changes
nothing for those of other classes, and next to nothing for those of its own.
"""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.identity import encode_name, mix_bits

_PART = 2**20  # names that are put together at a time


def choose_held_out(source: Source, fraction: float, seed: int, unfit: Sequence[int] = ()) -> NDArray[np.int64]:
    """The images held out of a source, int64 [n] in ascending order: `fraction` of each class, rounded.

    It is at least one image of each class that has two, and leaves at least one to train on. unfit: images that cannot
    be evaluated, in whose place others of their class are.
    """
    names, keys = source.listed_names(), np.empty(len(source), np.uint64)
    for start in range(0, len(keys), _PART):
        part = [zlib.crc32(encode_name(name)) for name in names[start : start + _PART]]
        keys[start : start + len(part)] = part
    drawn = mix_bits(keys ^ mix_bits(np.array([seed], np.uint64)))
    labels = source.labels.astype(np.int64)
    last = np.zeros(len(source), bool)
    last[list(unfit)] = True
    order = np.lexsort((keys, drawn, last, labels))
    sizes = np.bincount(labels, minlength=len(source.classes))
    ranks = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    most = np.minimum(np.maximum(sizes - 1, 0), np.bincount(labels[~last], minlength=len(sizes)))
    wanted = np.clip(np.floor(sizes * fraction + 0.5).astype(np.int64), 1, most)
    return np.sort(order[ranks < wanted[labels[order]]])


def find_listed(source: Source, images: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    """The images of a source that a list names, int64 [n] in ascending order, and the names that it does not have."""
    wanted = {encode_name(name): name for name in images}
    names, found = source.listed_names(), list[int]()
    for start in range(0, len(names), _PART):
        for index, name in enumerate(names[start : start + _PART], start):
            if wanted.pop(encode_name(name), None) is not None:
                found.append(index)
    return np.array(found, np.int64), list(wanted.values())


def all_but(source: Source, images: NDArray[np.int64]) -> NDArray[np.int64]:
    """The other images of a source, int64 [N - n] in ascending order."""
    others = np.ones(len(source), bool)
    others[images] = False
    return np.flatnonzero(others)
