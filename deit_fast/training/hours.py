"""Estimates how long a training takes, from measurements of this project or from published results."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import deit_fast
from deit_fast.models.cost import forward_macs
from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.sections import Model
from deit_fast.recipe.table import RECIPES, training_images
from deit_fast.training.schedule import total_steps
from deit_fast.zoo import ARCHITECTURES
from deit_fast.zoo.devices import Device, device_named
from deit_fast.zoo.reference_results import Fact, reference_results

RESULTS = Path(deit_fast.__file__).resolve().parents[1] / "benchmarks" / "results"
"""The folder of measurements in a source checkout; an installed package has none."""

_HELD_UP = {"user report", "reproduction's log", "author's statement"}
"""Sources whose times seem to be limited by loading images; they are not used."""


@dataclass(frozen=True)
class Hours:
    """Hours of wall time: the minimum and maximum over the sources."""

    least: float
    most: float
    measured: bool
    """Whether the hours come from this project's own measurement on such a device; else they are an estimate."""
    sources: tuple[str, ...]


@dataclass(frozen=True)
class _Rate:
    """A known speed of training."""

    images_per_second: float  # per device
    device: Device
    model: Model
    source: str

    def on(self, device: Device, model: Model) -> float:
        """Images per second of `device`, assuming that it reaches the same fraction of its peak rate."""
        work = forward_macs(self.model) / forward_macs(model)
        return self.images_per_second * work * device.tflops / self.device.tflops


def training_hours(
    recipe: Recipe, device: Device | None, processes: int, views: int, results: Path | None = None
) -> Hours | None:
    """The hours for `views` views on `processes` devices; None where nothing is known about them.

    A measurement on one device is used for each of several: it leaves out the exchange of gradients and the loader.
    Published figures are used for the same model only. Those on the same device are preferred; otherwise figures on
    other devices are scaled by the peak rates. Among these, those at the same resolution are preferred; otherwise
    figures are scaled by FLOPs. If the head alone is trained, there is no backward pass through the blocks, and a view
    costs a third; with Cosub it costs twice as much.
    """
    if device is None:
        return None
    rates = list(_measured(recipe.model, device, RESULTS if results is None else results))
    measured = bool(rates)
    rates = rates or _nearest(list(_published(recipe.model)), recipe.model, device)
    if not rates:
        return None
    work = views * _passes(recipe)
    hours = {work / (rate.on(device, recipe.model) * processes) / 3600: rate.source for rate in rates}
    least, most = min(hours), max(hours)
    return Hours(least, most, measured, tuple(dict.fromkeys([hours[least], hours[most]])))


def _passes(recipe: Recipe) -> float:
    """FLOPs for a view over those of a forward and a backward pass, of which the backward pass has two thirds."""
    return (1 / 3 if recipe.optim.trainable == "head" else 1.0) * (2 if recipe.loss.cosub else 1)


def _measured(model: Model, device: Device, results: Path) -> Iterator[_Rate]:
    """The newest figure of `python -m benchmarks throughput --mode train` on such a device, if there is one."""
    found: dict[str, _Rate] = {}
    for path in sorted(results.glob("throughput*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            own = device_named(content["machine"].get("gpu", ""))
            rows = content["rows"] if own == device and not content["quick"] else []
            for row in rows:
                if (row["mode"], row["model"], row["resolution"]) == ("train", model.name, model.image_size):
                    rate = row["images_per_second"]["median"]
                    found[content["date"]] = _Rate(rate, device, model, f"{path.name}, batch {row['batch']}")
        except (OSError, ValueError, KeyError, TypeError):  # not a file of the benchmarks
            continue
    if found:
        yield found[max(found)]


def _published(model: Model) -> Iterator[_Rate]:
    """Published rates for the model, at any resolution."""
    for fact in reference_results():
        if fact.model != model.name or fact.value is None or fact.trust in _HELD_UP or fact.resolution is None:
            continue
        device, count = device_named(fact.hardware or ""), _devices(fact.hardware or "")
        images = _images_per_second(fact)
        if device is None or not count or not images or fact.model not in ARCHITECTURES:
            continue
        theirs = model.model_copy(update={"image_size": fact.resolution})
        yield _Rate(images / count, device, theirs, _describe(fact))


def _nearest(rates: list[_Rate], model: Model, device: Device) -> list[_Rate]:
    for key in (lambda rate: rate.device == device, lambda rate: rate.model.image_size == model.image_size):
        rates = [rate for rate in rates if key(rate)] or rates
    return rates


def _images_per_second(fact: Fact) -> float:
    """The rate over all devices; 0 for a fact that does not say how many images it is about."""
    assert fact.value is not None
    if fact.what == "train_images_per_second":
        return fact.value
    recipe = RECIPES.get(fact.recipe or "")
    if recipe is None or fact.what not in ("hours", "seconds_per_epoch"):
        return 0.0
    per_epoch = int(training_images(recipe)[1] // recipe.run.global_batch)
    if fact.what == "seconds_per_epoch":
        return per_epoch * recipe.run.global_batch / fact.value
    told = re.match(r"(\d+) epochs", fact.comment)
    epochs = int(told.group(1)) if told else recipe.schedule.epochs
    steps = total_steps(recipe.schedule.model_copy(update={"epochs": epochs}), per_epoch)
    return steps * recipe.run.global_batch / fact.value / 3600


def _devices(hardware: str) -> int:
    """The number of devices in a text such as "8 A100, 1 node" or "TPU v4-64 slice (32 chips)"; 0 without one."""
    if found := re.search(r"\((\d+) chips\)", hardware) or re.match(r"(\d+) ", hardware):
        return int(found.group(1))
    return 8 if hardware.startswith("DGX") else 0


def _describe(fact: Fact) -> str:
    size = f"{fact.value:,g} {fact.unit} at {fact.resolution} px on {fact.hardware}"
    return f"{size}, {fact.precision or 'precision not stated'} ({fact.source}, {fact.trust})"
