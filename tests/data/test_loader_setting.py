"""Where the search for the loader's setting is made and where not; the loader that is timed is a real one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from deit_fast.data.loader import setting as loader_setting
from deit_fast.data.loader.batches import TrainLoader
from deit_fast.data.loader.dali import import_dali
from deit_fast.data.loader.order import FullOrder
from deit_fast.data.loader.pipeline import train_pipeline
from deit_fast.data.loader.sampler import TrainSampler
from deit_fast.data.loader.setting import choose_setting, time_loader
from deit_fast.data.loader.tuning import LoaderSetting
from deit_fast.data.sources.base import Source
from deit_fast.data.sources.open import open_source
from deit_fast.recipe.sections import Augment, Run
from deit_fast.runtime.hardware import cpu_threads
from deit_fast.runtime.world import World

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def source(folder_data: Path) -> Source:
    return open_source(str(folder_data), "train")


def build_on_cpu(source: Source) -> Any:
    def build(setting: LoaderSetting, start: int, stop: int) -> TrainLoader:
        sampler = TrainSampler(FullOrder(len(source), 0), 1, 4)
        return TrainLoader(source, Augment(), 32, [sampler], 0, CPU, setting.threads, start_step=start, stop_step=stop)

    return build


def never(*_: Any) -> Any:
    raise AssertionError("nothing is to be measured")


def test_cpus_and_given_loads_are_not_searched(source: Source) -> None:
    assert choose_setting("auto", source, World(0, 1, CPU), never) == LoaderSetting(cpu_threads(), 0.65)
    default = Run(global_batch=4).hw_decoder_load  # a search could change pixels, so none runs unless it is asked for
    assert choose_setting(default, source, World(0, 1, GPU), never) == LoaderSetting(cpu_threads(), 0.65)
    assert choose_setting(0.3, source, World(0, 1, GPU), never) == LoaderSetting(cpu_threads(), 0.3)


def test_a_gpu_is_searched_once(source: Source, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter(["NVIDIA H200", "NVIDIA H200", "NVIDIA A100"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: next(names))
    monkeypatch.setattr(loader_setting, "cpu_threads", lambda: 8)
    asked: list[LoaderSetting] = []

    def measure(setting: Any, device: torch.device) -> float:
        asked.append(setting)
        return abs(setting.hw_decoder_load - 0.8) + 8 / setting.threads

    monkeypatch.setattr(loader_setting, "time_loader", measure)
    build: Any = lambda setting, start, stop: setting  # noqa: E731
    world = World(0, 1, GPU)
    assert choose_setting("auto", source, world, build) == LoaderSetting(8, 0.8)
    count = len(asked)
    assert choose_setting("auto", source, world, never) == LoaderSetting(8, 0.8)
    assert choose_setting("auto", source, world, build) == LoaderSetting(8, 0.8)
    assert len(asked) == 2 * count
    assert [path.name for path in cache.iterdir()] == ["loader.json"]


def test_timing_takes_batches_and_closes_the_loader(source: Source) -> None:
    loader = build_on_cpu(source)(LoaderSetting(1), 0, 16)
    assert 0 < time_loader(loader, CPU) < 60
    assert loader._producer is None


@pytest.mark.parametrize("decode_once", [False, True])
def test_the_load_reaches_the_gpus_decoder(decode_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    dali = import_dali()
    loads: list[float] = []
    decode = dali.fn.decoders.image

    def recorded(*inputs: Any, **named: Any) -> Any:
        loads.append(named["hw_decoder_load"])
        return decode(*inputs, **named)

    monkeypatch.setattr(dali.fn.decoders, "image", recorded)
    monkeypatch.setattr(dali.Pipeline, "build", lambda self: None)
    train_pipeline(Augment(), 32, lambda: [], 4, GPU, 1, decode_once, hw_decoder_load=0.3)
    assert loads == [0.3]
