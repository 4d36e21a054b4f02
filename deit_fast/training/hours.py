"""How long a training takes: by what was measured here, else by what was published of others, as an estimate."""

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
"""The JSONs of a checkout; an installed package has none."""

_HELD_UP = {"user report", "reproduction's log", "author's statement"}
"""Who told times that the loading of the images decided, as far as one can see: not taken."""


@dataclass(frozen=True)
class Hours:
    """Hours of wall time, the least and the most of what the sources say."""

    least: float
    most: float
    measured: bool
    """Whether it was measured here, on such a device; otherwise it is an estimate."""
    sources: tuple[str, ...]


@dataclass(frozen=True)
class _Rate:
    """A known speed of training."""

    images_per_second: float  # of one device
    device: Device
    model: Model
    source: str

    def on(self, device: Device, model: Model) -> float:
        """Images per second of a device with the same share of its peak in use."""
        work = forward_macs(self.model) / forward_macs(model)
        return self.images_per_second * work * device.tflops / self.device.tflops


def training_hours(
    recipe: Recipe, device: Device | None, processes: int, views: int, results: Path | None = None
) -> Hours | None:
    """The hours of `views` views on so many devices; None where nothing is known of them.

    What was measured on one device counts for each of several: the exchange of gradients and the loader are not in it.
    Of published figures those of the same model are taken, on the same device where there are some, else on others by
    their peaks; and of these at the same resolution where there are some, else at others by their FLOPs.
    """
    if device is None:
        return None
    rates = list(_measured(recipe.model, device, RESULTS if results is None else results))
    measured = bool(rates)
    rates = rates or _nearest(list(_published(recipe.model)), recipe.model, device)
    if not rates:
        return None
    hours = {views / (rate.on(device, recipe.model) * processes) / 3600: rate.source for rate in rates}
    least, most = min(hours), max(hours)
    return Hours(least, most, measured, tuple(dict.fromkeys([hours[least], hours[most]])))


def _measured(model: Model, device: Device, results: Path) -> Iterator[_Rate]:
    """The newest figure of `python -m benchmarks throughput --mode train` on such a device, where there is one."""
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
        except (OSError, ValueError, KeyError, TypeError):  # no file of ours
            continue
    if found:
        yield found[max(found)]


def _published(model: Model) -> Iterator[_Rate]:
    """What was published of the model, at any resolution, with the number of images that a second takes."""
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
    """Over all devices; 0 for a fact that does not say how many images it is about."""
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
    """How many devices a text such as "8 A100, 1 node" or "TPU v4-64 slice (32 chips)" speaks of; 0 if of none."""
    if found := re.search(r"\((\d+) chips\)", hardware) or re.match(r"(\d+) ", hardware):
        return int(found.group(1))
    return 8 if hardware.startswith("DGX") else 0


def _describe(fact: Fact) -> str:
    size = f"{fact.value:,g} {fact.unit} at {fact.resolution} px on {fact.hardware}"
    return f"{size}, {fact.precision or 'precision not stated'} ({fact.source}, {fact.trust})"
