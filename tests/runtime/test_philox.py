"""Counter-based random numbers against published vectors and slow arithmetic."""

import math

import numpy as np
import pytest
from scipy.stats import chisquare, ks_2samp

from deit_fast.runtime.philox import Stream, generator, normal, philox4x32, uniform
from tests.oracles.philox import philox4x32 as slow_philox

# Random123's kat_vectors, "philox4x32 10".
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
MANY = np.arange(20_000)


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_published_vectors(counter: str, key: str, answer: str) -> None:
    ours = philox4x32(np.array(words(counter), np.uint64)[:, None], tuple(words(key)))
    assert ours[:, 0].tolist() == words(answer) == slow_philox(words(counter), words(key))


def test_philox_equals_the_slow_one() -> None:
    counters = np.random.default_rng(0).integers(0, 2**32, (4, 50), np.uint64)
    fast = philox4x32(counters, (0x12345678, 0x9ABCDEF0))
    assert fast.T.tolist() == [slow_philox(counter, [0x12345678, 0x9ABCDEF0]) for counter in counters.T.tolist()]


def test_uniform_is_the_generator_at_a_documented_counter() -> None:
    seed, epoch = -5, 7
    drawn = uniform(seed, Stream.JITTER, epoch, np.array([1_281_166]), np.array([2]), 6)
    key = [seed % 2**32, seed % 2**64 >> 32]
    blocks = [slow_philox([1_281_166, 2, epoch, (Stream.JITTER << 16) + block], key) for block in range(2)]
    assert drawn[0].tolist() == [word / 2**32 for word in (blocks[0] + blocks[1])[:6]]


def test_uniform_is_even_and_uncorrelated() -> None:
    drawn = uniform(0, Stream.CROP, 0, MANY, MANY % 3, 8)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert chisquare(np.histogram(drawn, 100, (0, 1))[0]).pvalue > 1e-5
    others = [
        uniform(1, Stream.CROP, 0, MANY, MANY % 3, 8),
        uniform(0, Stream.FLIP, 0, MANY, MANY % 3, 8),
        uniform(0, Stream.CROP, 1, MANY, MANY % 3, 8),
        uniform(0, Stream.CROP, 0, MANY + 1, MANY % 3, 8),
        uniform(0, Stream.CROP, 0, MANY, MANY % 3 + 1, 8),
    ]
    correlation = np.corrcoef(np.concatenate([drawn, *others], axis=1).T) - np.eye(48)
    assert np.abs(correlation).max() < 5 / math.sqrt(len(MANY))


def test_normal_has_the_normal_distribution() -> None:
    drawn = normal(0, Stream.MAGNITUDE, 0, MANY, MANY * 0, 2)
    reference = np.random.default_rng(0).standard_normal(40_000)
    assert ks_2samp(drawn.ravel(), reference).pvalue > 1e-3
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 5 / math.sqrt(len(MANY))
    assert np.isfinite(drawn).all()


def test_generator_depends_on_every_word_of_its_key() -> None:
    keys = [
        (0, Stream.MIX, 0, 0),
        (1, Stream.MIX, 0, 0),
        (0, Stream.ORDER, 0, 0),
        (0, Stream.MIX, 1, 0),
        (0, Stream.MIX, 0, 1),
    ]
    assert len({generator(*key).random() for key in keys}) == len(keys)
    assert generator(-1, Stream.MIX, 5).random() == generator(-1, Stream.MIX, 5).random()
