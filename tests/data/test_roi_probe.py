"""The trial of decoding regions: what counts as failing, and that it can tell a wrong window from a right one."""

import sys
from typing import Any

import numpy as np
import pytest
import torch

from deit_fast.data.loader import roi_probe
from deit_fast.data.loader import setting as loader_setting
from deit_fast.data.loader.dali import import_dali
from deit_fast.data.loader.pipeline import train_pipeline
from deit_fast.data.loader.roi_probe import exits_well
from deit_fast.data.loader.setting import decodes_regions
from deit_fast.recipe.sections import Augment
from deit_fast.runtime.world import World

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("code", "well"),
    [
        ("", True),
        ("import sys; sys.exit(1)", False),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", False),
        ("import time; time.sleep(60)", False),
    ],
    ids=["fine", "error", "crash", "hang"],
)
def test_what_a_child_may_do(code: str, well: bool) -> None:
    assert exits_well([sys.executable, "-c", code], seconds=20 if well or "sleep" not in code else 1) == well
    assert not exits_well(["/nowhere/python"])


def test_a_window_is_the_cut_one_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right windows differ by nothing; decoded at another place, they do."""
    monkeypatch.setattr(roi_probe, "_BATCHES", 1)
    assert roi_probe.largest_difference(CPU) == 0
    decode = roi_probe.decode_window

    def shifted(images: Any, window: Any, on_gpu: bool, region: bool) -> Any:
        return decode(images, window * np.int32([0, 0, 1, 1]), on_gpu, region=region)

    monkeypatch.setattr(roi_probe, "decode_window", shifted)
    assert roi_probe.largest_difference(CPU) > roi_probe._MEAN


def test_only_a_gpu_that_passes_decodes_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    for sound in (True, False):
        monkeypatch.setattr(loader_setting, "is_sound", lambda device, sound=sound: sound)
        assert decodes_regions(World(0, 1, GPU)) == sound
        assert not decodes_regions(World(0, 1, CPU))


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The decoders of graphs that are defined and not built, with their devices."""
    dali = import_dali()
    called: list[tuple[str, str]] = []
    for name in ("image", "image_slice"):
        decode = getattr(dali.fn.decoders, name)

        def recorded(*inputs: Any, name: str = name, decode: Any = decode, **named: Any) -> Any:
            called.append((name, named["device"]))
            return decode(*inputs, **named)

        monkeypatch.setattr(dali.fn.decoders, name, recorded)
    monkeypatch.setattr(dali.Pipeline, "build", lambda self: None)
    return called


@pytest.mark.parametrize("roi_decode", [False, True])
def test_the_gpu_graph_decodes_regions_only_when_told(roi_decode: bool, decoders: list[tuple[str, str]]) -> None:
    train_pipeline(Augment(), 32, lambda: [], 4, GPU, 1, roi_decode=roi_decode)
    assert decoders == [("image_slice" if roi_decode else "image", "mixed")]


def test_the_trial_on_a_gpu_compares_both_ways(
    decoders: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roi_probe.Pipeline, "run", lambda self: torch.full((1, 3, 1, 1), 2.0))
    assert roi_probe.largest_difference(GPU) == 2
    assert sorted(decoders) == [("image", "mixed"), ("image_slice", "mixed")]
