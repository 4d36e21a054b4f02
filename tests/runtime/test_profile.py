"""The profile of a run: the steps stay what they were, and a trace and a page are left."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.profile import _group, profiled
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
