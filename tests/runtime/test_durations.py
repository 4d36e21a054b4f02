"""Durations in words: a short one is never 0.0 of a long unit."""

import re

import pytest

from deit_fast.runtime.durations import duration, span


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (0.004, "0.004 s"), (0.42, "0.42 s"), (7.6, "7.6 s"), (47.8, "48 s"), (59.4, "59 s"),
     (60, "1.0 min"), (75, "1.2 min"), (599, "10 min"), (6600, "110 min"), (7199, "120 min"),
     (7200, "2.0 h"), (84 * 3600, "84 h"), (3_600_000, "1,000 h")],
)  # fmt: skip
def test_a_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_span_has_the_unit_of_its_longer_end() -> None:
    assert span(21, 42) == ("21 to 42", "s")
    assert span(30, 600) == ("0.5 to 10", "min")
    assert span(3600, 3 * 3600) == ("1.0 to 3.0", "h")
    assert span(100 * 3600, 101 * 3600) == ("100", "h")


def test_every_duration_is_itself_within_a_digit() -> None:
    size = {"s": 1, "min": 60, "h": 3600}
    for number in range(1, 400):
        seconds = 1.07**number / 100
        found = re.fullmatch(r"([\d.,]+) (s|min|h)", duration(seconds))
        assert found
        assert float(found[1].replace(",", "")) * size[found[2]] == pytest.approx(seconds, rel=0.05)
