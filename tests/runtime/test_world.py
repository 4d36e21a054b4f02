"""Groups of processes that are made, left and made again in one program, as a library's calls under torchrun do."""

import multiprocessing
import os
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from deit_fast.runtime.world import World, join_world, leave_world


def join_three_times(rank: int) -> None:
    os.environ["RANK"] = str(rank)
    for turn in range(3):
        time.sleep(0.2 * (turn > 0 and rank == 0))  # the other one asks for this one's address before it is there
        world = join_world()
        assert world.sum(torch.ones(1)).item() == 2
        leave_world(world)
        assert not dist.is_initialized()
    os._exit(0)


def test_a_group_after_a_group_in_torchruns_store(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2",
                        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    context = multiprocessing.get_context("fork")  # torch is imported already
    processes = [context.Process(target=join_three_times, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]


@pytest.mark.parametrize(
    ("rank", "size", "local", "ranks"),
    [
        (0, 1, {}, range(1)),
        (5, 8, {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, range(4, 8)),
        (5, 8, {}, range(5, 6)),
        (5, 8, {"LOCAL_RANK": "6", "LOCAL_WORLD_SIZE": "8"}, range(5, 6)),  # of another group of processes
        (5, 8, {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "8"}, range(5, 6)),
    ],
)
def test_the_ranks_of_a_machine(
    rank: int, size: int, local: dict[str, str], ranks: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in local.items():
        monkeypatch.setenv(name, value)
    assert World(rank, size, torch.device("cpu")).node_ranks == ranks
