"""Our loaders for the cases of `loader`, without the parts that only a training run needs."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deit_fast.data.loader.batches import EvalLoader, TrainLoader
from deit_fast.data.loader.order import FullOrder
from deit_fast.data.loader.sampler import TrainSampler
from deit_fast.data.sources.base import Source
from deit_fast.infer.precision import Classifier
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.hardware import cpu_threads

from .images import Sample


def normaliser(recipe: Recipe, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """uint8 [B, 3, S, S] -> float32, normalised: our model normalises in its step, the reference in its transforms."""
    return Classifier(nn.Identity(), recipe, torch.float32, device).normalise


def training(
    source: Source, recipe: Recipe, repeats: int, batch: int, steps: int, device: torch.device
) -> tuple[TrainLoader, NDArray[np.int64]]:
    """A loader of `steps` steps, and the images that it shows, in order, int64 [steps * batch]."""
    sampler = TrainSampler(FullOrder(len(source), 0), repeats, batch)
    loader = TrainLoader(
        source, recipe.augment, recipe.model.image_size, [sampler], 0, device, cpu_threads(), stop_step=steps,
        decode_once=repeats > 1,
    )  # fmt: skip
    return loader, np.concatenate([sampler.batch(step).indices for step in range(steps)])


def evaluation(source: Source, recipe: Recipe, batch: int, device: torch.device) -> tuple[EvalLoader, Sample]:
    """A loader of whole batches, and the images that it shows.

    With a few photographs, padding the last batch would be a third of the work; with 50,000 it is negligible.
    """
    whole = Sample(source, len(source) // batch * batch)
    return EvalLoader(whole, recipe.data, recipe.model.image_size, batch, device, cpu_threads()), whole


def race_recipe(recipe: Recipe, case: str) -> Recipe:
    """The recipe of a race's case."""
    words = ["augment.policy=rand_augment", "augment.color_jitter=0"] if case == "rand_augment" else []
    return recipe.override(words)


def race_repeats(case: str) -> int:
    """Number of views of an image in a batch."""
    return 3 if case == "repeated_augmentation" else 1
