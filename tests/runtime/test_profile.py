"""The profile of a run: the steps stay what they were, and a trace and a page are left."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import torch
from torch.autograd import DeviceType

from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.profile import StepProfile, _group, _synchronisations, profiled
from deit_fast.runtime.world import World
from deit_fast.training.run import train

CPU = World(0, 1, torch.device("cpu"))


def run(steps: int, out: Path, world: World = CPU) -> list[int]:
    seen = []
    for item in profiled(iter(range(steps)), out, world, warmup=2, count=3):
        seen.append(item)
        (torch.ones(64, 64) @ torch.ones(64, 64)).sum().item()
    return seen


def test_trace_and_page(tmp_path: Path) -> None:
    assert run(8, tmp_path) == list(range(8))
    page = (tmp_path / "profile" / "summary.txt").read_text()
    assert page.startswith("3 steps of ")
    assert "1.00 per step" in page  # the .item() of every step
    assert "matrix products" in page
    assert len(page.splitlines()) < 60
    with gzip.open(tmp_path / "profile" / "trace.json.gz") as trace:
        assert json.load(trace)["traceEvents"]


def test_short_runs_and_other_processes(tmp_path: Path) -> None:
    assert run(2, tmp_path) == [0, 1]
    assert not (tmp_path / "profile").exists()
    assert run(8, tmp_path, World(1, 2, torch.device("cpu"))) == list(range(8))
    assert not (tmp_path / "profile").exists()
    assert run(4, tmp_path) == list(range(4))
    assert (tmp_path / "profile" / "summary.txt").read_text().startswith("2 steps of ")


def test_a_run_that_stops_midway_still_leaves_its_profile(tmp_path: Path) -> None:
    steps: Iterator[int] = profiled(iter(range(100)), tmp_path, CPU, warmup=1, count=50)
    for item in steps:
        if item == 4:
            break
    steps.close()  # type: ignore[attr-defined]
    assert (tmp_path / "profile" / "summary.txt").exists()


def test_waits_of_the_loaders_threads_are_not_the_steps() -> None:
    """Events as the profiler gives them on a GPU: operations of the step's two threads, CUDA's calls of all."""
    step, backward, loader = 101, 102, 999

    def event(name: str, thread: int, device: DeviceType = DeviceType.CPU) -> SimpleNamespace:
        return SimpleNamespace(name=name, device_resource_id=thread, device_type=device)

    events = [
        event("aten::mm", step), event("autograd::engine::evaluate_function: MmBackward0", backward),
        event("cudaStreamSynchronize", step), event("cudaEventSynchronize", backward),
        *[event("cudaStreamSynchronize", loader), event("cudaEventSynchronize", loader)] * 50,
        event("aten::mm", loader, DeviceType.CUDA),  # a kernel on stream 999
        event("cudaDeviceSynchronize", step),
    ]  # fmt: skip
    assert _synchronisations(events) == {
        "cudaStreamSynchronize": 1, "cudaEventSynchronize": 1, "cudaDeviceSynchronize": 1
    }  # fmt: skip


def test_a_thread_of_another_kind_is_told_apart() -> None:
    """The operations of the thread that profiles carry its number, another thread's are not recorded at all."""
    other = Thread(target=lambda: torch.ones(4).sum().item())
    watched = StepProfile(torch.device("cpu"))
    watched.start()
    torch.ones(4).sum().item()
    other.start()
    other.join()
    watched.stop()
    threads = {event.device_resource_id for event in watched._events if "::" in event.name}
    assert len(threads) == 1
    assert _synchronisations(watched._events) == {"aten::_local_scalar_dense": 1}


def test_kinds_of_kernels() -> None:
    assert _group("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n") == "matrix products"
    assert _group("cudnn_generated_fort_native_sdpa_sm90_flash_fprop") == "attention"
    assert _group("triton_red_fused_native_layer_norm_3") == "compiled elementwise"
    assert _group("Memcpy HtoD (Pinned -> Device)") == "copies"


def test_a_training_run_is_profiled(tmp_path: Path, folder_data: Path) -> None:
    words = ["model.num_classes=3", "model.image_size=16", "run.global_batch=8", "schedule.epochs=2",
             "schedule.warmup_epochs=1", "run.profile=true"]  # fmt: skip
    result = train(get_recipe("demo_pretrain", words), str(folder_data), tmp_path / "run")
    assert result["step"] == 24
    page = (tmp_path / "run" / "profile" / "summary.txt").read_text()
    assert page.startswith("4 steps of ")
    assert "waiting for data" in page
