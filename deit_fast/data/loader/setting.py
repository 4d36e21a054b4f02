"""The training loader's setting for this machine: measured at the first start, read from a file afterwards."""

import itertools
import time
from collections.abc import Callable

import numpy as np
import torch

from deit_fast.data.loader.batches import TrainLoader
from deit_fast.data.loader.dali import import_dali
from deit_fast.data.loader.roi_probe import is_sound
from deit_fast.data.loader.tuning import (
    HW_DECODER_LOAD,
    LoaderSetting,
    cache_file,
    keep_setting,
    machine_key,
    read_setting,
    search,
)
from deit_fast.data.sources.base import Source, read_image
from deit_fast.runtime.errors import DataError
from deit_fast.runtime.hardware import cpu_threads
from deit_fast.runtime.world import World

_WARM, _TIMED = 4, 12  # batches; the queue holds less than the warm ones
_SIZED = 16  # images whose sizes stand for all

Build = Callable[[LoaderSetting, int, int], TrainLoader]
"""The run's loader of the steps from one to another."""


def choose_setting(load: float | str, source: Source, world: World, build: Build) -> LoaderSetting:
    """The training loader's setting, the same for all processes: measured by them together, or read from a file.

    load: `run.hw_decoder_load`. On CPUs, and with a load that is given, nothing is searched: all cores are used.
    """
    cores = cpu_threads()
    if world.device.type != "cuda" or not isinstance(load, str):
        return LoaderSetting(cores, HW_DECODER_LOAD if isinstance(load, str) else load)
    key = machine_key(torch.cuda.get_device_name(world.device), cores, import_dali().__version__, _pixels(source))
    setting: LoaderSetting | None = world.broadcast(read_setting(cache_file(), key))
    if setting is None:
        # All processes at once, as in training, and the slowest counts. The first pass reads the files.
        time_loader(build(LoaderSetting(cores), 0, _WARM + _TIMED), world.device)
        setting = search(
            lambda each: max(world.gather(time_loader(build(each, 0, _WARM + _TIMED), world.device))), cores
        )
        if world.is_main:
            keep_setting(cache_file(), key, setting)
    return setting


def decodes_regions(world: World) -> bool:
    """Whether the main process's GPU decodes regions of JPEGs soundly; False on CPUs, the same on all processes.

    It is tried anew at every start, which takes some seconds.
    """
    on_gpu = world.device.type == "cuda"
    return bool(world.broadcast(on_gpu and world.is_main and is_sound(world.device)))


def time_loader(loader: TrainLoader, device: torch.device) -> float:
    """Seconds that the loader takes for a dozen batches, after a few that do not count; it is closed then."""
    try:
        batches = iter(loader)
        for count in (_WARM, _TIMED):
            start = time.perf_counter()
            for _ in itertools.islice(batches, count):
                pass
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        return time.perf_counter() - start
    finally:
        loader.close()


def _pixels(source: Source) -> float:
    """Of the median image, by the headers of a few."""
    found = []
    for index in np.linspace(0, len(source) - 1, _SIZED).astype(int).tolist():
        try:
            height, width, _ = source.header(index, read_image(source, index))
        except DataError:
            continue
        found.append(height * width)
    return float(np.median(found)) if found else 0.0
