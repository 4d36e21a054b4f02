"""Damaged images and shards in numbers: no crash, no hang, no wrong label, and every substitute's original named.

SOAK=1 python -m pytest -m soak -s tests/soak/test_fuzz.py fuzzes 20,000 files, in about a quarter of an hour on one
core; without SOAK it is one per cent of them.
"""

import faulthandler
import os
import sys
from pathlib import Path

import pytest

from tests.hostile import check_shard, check_training

pytestmark = pytest.mark.soak

SHARE = float(os.environ.get("SOAK", "0.01"))
FILES = round(20_000 * SHARE)
HANG_SECONDS = 120  # a round takes one


def test_fuzzed_images() -> None:
    damaged = bad = 0
    rounds = -(-FILES // 2 // 24)
    for seed in range(rounds):
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True, file=sys.__stderr__)
        found = check_training(seed)
        damaged, bad = damaged + found["damaged"], bad + found["bad"]
    faulthandler.cancel_dump_traceback_later()
    print(f"\n{damaged} fuzzed images: {bad} substituted and named, the rest decoded; 0 crashes, hangs, wrong labels")
    assert damaged >= FILES // 2
    assert damaged // 4 < bad < damaged


def test_fuzzed_shards(tmp_path: Path) -> None:
    shards = FILES // 2
    refused = 0
    for seed in range(shards):
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True, file=sys.__stderr__)
        refused += check_shard(seed, tmp_path)
        for path in tmp_path.iterdir():
            path.unlink()
    faulthandler.cancel_dump_traceback_later()
    print(f"\n{shards} fuzzed shards: {refused} refused in a line, the rest sound; 0 crashes, hangs, wrong labels")
    assert shards // 4 < refused < shards
