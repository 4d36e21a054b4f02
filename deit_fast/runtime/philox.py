"""Counter-based random numbers: each draw is a pure function of its purpose and place, so there is no state to save.

Philox4x32-10 of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


class Stream(IntEnum):
    """The purpose of a random number. Streams are independent: without one of them, the others stay the same."""

    ORDER = 0
    CROP = 1
    FLIP = 2
    POLICY = 3
    MAGNITUDE = 4
    JITTER = 5
    MIX = 6
    INTERPOLATION = 7
    ERASE = 8
    SUBSTITUTE = 9
    WEIGHTS = 10


def philox4x32(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Philox4x32-10 of every counter: [4, ...] words below 2^32 in, the same shape out. key: two such words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        left, right = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (right >> _SHIFT) ^ c1 ^ np.uint64(k0), right & _LOW
        c2, c3 = (left >> _SHIFT) ^ c3 ^ np.uint64(k1), left & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + _KEY_STEPS[1]) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3))


def uniform(
    seed: int, stream: Stream, epoch: int, index: NDArray[np.int64], view: NDArray[np.int64], draws: int
) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), 32 bits each: [B, draws], row b a pure function of (seed, stream, epoch, index, view).

    index, view: int64 [B], the image and which of its augmented views. Any seed is taken modulo 2^64.
    """
    blocks = -(-draws // 4)
    counter = np.empty((4, len(index), blocks), np.uint64)
    counter[0] = index[:, None]
    counter[1] = view[:, None]
    counter[2] = epoch
    counter[3] = (int(stream) << 16) + np.arange(blocks)
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))
    flat = words.transpose(1, 2, 0).reshape(len(index), 4 * blocks)
    return np.multiply(flat[:, :draws], 2.0**-32, dtype=np.float64)


def normal(
    seed: int, stream: Stream, epoch: int, index: NDArray[np.int64], view: NDArray[np.int64], draws: int
) -> NDArray[np.float64]:
    """Standard normal numbers [B, draws] by Box and Muller's transform; keyed like `uniform`."""
    pairs = uniform(seed, stream, epoch, index, view, 2 * draws)
    radius = np.sqrt(-2 * np.log1p(-pairs[:, :draws]))  # 1 - u is never zero
    return np.asarray(radius * np.cos(2 * np.pi * pairs[:, draws:]), np.float64)


def generator(seed: int, stream: Stream, *position: int) -> np.random.RandomState:
    """A numpy generator keyed by (seed, stream) and up to three words of position: for draws of unknown number.

    The legacy class, because numpy promises that its draws never change: a run may outlive a version of numpy.
    """
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, int(stream)], np.uint64)
    counter = np.zeros(4, np.uint64)
    counter[1 : 1 + len(position)] = position  # the lowest word counts the draws
    return np.random.RandomState(np.random.Philox(key=key, counter=counter))
