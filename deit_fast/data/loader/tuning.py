"""How the GPU's loader is set on a machine: a short search at the first start, whose result is kept in a file.

nvJPEG's engines and the CPU's threads decode JPEGs side by side; which share the engines should have depends on both
(DALI pull request 6366: 0.11 with 70 threads, 0.65 to 0.9 with few).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deit_fast.runtime.files import cache_folder
from deit_fast.runtime.remembered import read_remembered, remember

HW_DECODER_LOAD = 0.65
"""DALI's default."""
_LOADS = (0.15, 0.4, 0.65, 0.8, 0.9)
_CLOSE = 1.03  # what noise makes of equal settings


@dataclass(frozen=True)
class LoaderSetting:
    """What the loader's speed on a GPU depends on."""

    threads: int
    """DALI's CPU threads."""
    hw_decoder_load: float = HW_DECODER_LOAD
    """Share of the JPEGs that the GPU's decoding engines get; the rest is decoded by CPU threads and CUDA cores."""


def search(measure: Callable[[LoaderSetting], float], cores: int) -> LoaderSetting:
    """The setting that takes `measure`, in seconds, the fewest: the load first, with all cores, then the threads.

    Within 3 % of the fastest, DALI's own load is kept, and fewer threads are taken: training needs cores too.
    """
    loads = {load: measure(LoaderSetting(cores, load)) for load in _LOADS}
    load = _fastest(loads, sorted(loads, key=lambda each: abs(each - HW_DECODER_LOAD)))
    counts = {max(1, cores // part): 0.0 for part in (4, 2)}
    counts = {count: measure(LoaderSetting(count, load)) for count in counts if count < cores} | {cores: loads[load]}
    return LoaderSetting(int(_fastest(counts, sorted(counts))), load)


def _fastest(seconds: Mapping[Any, float], preferred: list[Any]) -> Any:
    """The first of the preferred that is within noise of the fastest."""
    limit = min(seconds.values()) * _CLOSE
    return next(each for each in preferred if seconds[each] <= limit)


def cache_file() -> Path:
    """Where settings are kept, for all runs of this user."""
    return cache_folder() / "loader.json"


def machine_key(gpu: str, cores: int, dali: str, pixels: float) -> str:
    """What a setting is valid for. pixels: of a typical image; a setting serves images of half to twice as many."""
    return f"{gpu}, {cores} cores, DALI {dali}, images of about 2^{max(0, round(pixels) - 1).bit_length()} pixels"


def read_setting(path: Path, key: str) -> LoaderSetting | None:
    """The setting kept under the key; None where there is none that can be read and makes sense."""
    setting = read_remembered(path).get(key)
    if not isinstance(setting, dict) or set(setting) != {"threads", "hw_decoder_load"}:
        return None
    threads, load = setting["threads"], setting["hw_decoder_load"]
    if type(threads) is not int or threads < 1 or not isinstance(load, int | float) or not 0 <= load <= 1:
        return None
    return LoaderSetting(threads, float(load))


def keep_setting(path: Path, key: str, setting: LoaderSetting) -> None:
    """Adds the setting to the file, or replaces the key's, as `remember` does."""
    remember(path, key, asdict(setting))
