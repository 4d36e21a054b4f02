"""The choice of training images that are held out for validation, where a data set has no validation split.

The choice depends on the images' names, their classes and a seed alone. It depends neither on the order of the listing
nor on the number of processes. A larger fraction holds out the same images and more. Adding or removing an image
changes nothing for the other classes, and at most a few choices in its own class.
"""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.identity import encode_name, mix_bits

_PART = 2**20  # number of names that are processed at a time


def choose_held_out(source: Source, fraction: float, seed: int, unfit: Sequence[int] = ()) -> NDArray[np.int64]:
    """The images held out of a source, int64 [n] in ascending order: `fraction` of each class, rounded.

    At least one image is held out of each class that has two, and at least one remains for training. unfit: images that
    cannot be evaluated; other images of their class are chosen instead.
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
    """The indices of the listed images in a source, int64 [n] in ascending order, and the names that it lacks."""
    wanted = {encode_name(name): name for name in images}
    names, found = source.listed_names(), list[int]()
    for start in range(0, len(names), _PART):
        for index, name in enumerate(names[start : start + _PART], start):
            if wanted.pop(encode_name(name), None) is not None:
                found.append(index)
    return np.array(found, np.int64), list(wanted.values())


def all_but(source: Source, images: NDArray[np.int64]) -> NDArray[np.int64]:
    """All images of a source but these: int64 [N - n], in ascending order."""
    others = np.ones(len(source), bool)
    others[images] = False
    return np.flatnonzero(others)
