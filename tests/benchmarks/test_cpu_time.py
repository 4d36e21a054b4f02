"""The CPU seconds of workers that stay: counted while they live, and no other way once they have ended."""

import multiprocessing
import time
from multiprocessing.connection import Connection

import pytest

from benchmarks.cpu_time import cpu_seconds

BURNT = 0.3


def burn(pipe: Connection) -> None:
    while time.process_time() < BURNT:
        pass
    pipe.send(time.process_time())
    pipe.recv()


def test_a_living_worker_counts_like_one_that_ended() -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    start, own = cpu_seconds(), time.process_time()
    worker = context.Process(target=burn, args=(theirs,))
    worker.start()
    assert ours.poll(60)
    alive = cpu_seconds() - start - (time.process_time() - own)
    assert alive == pytest.approx(ours.recv(), abs=0.05)
    ours.send(None)
    worker.join()
    ended = cpu_seconds() - start - (time.process_time() - own)
    assert ended == pytest.approx(alive, abs=0.05)
