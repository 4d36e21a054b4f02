"""Trained models in use: load a checkpoint, classify images, extract features."""

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2 as transforms

from deit_fast.checkpoint import initialise, load_weights
from deit_fast.classifier import Classifier, choose_dtype
from deit_fast.data.images import GivenImage, ImageList, readable_batches
from deit_fast.distributed import cpu_threads, join_world
from deit_fast.errors import RunError
from deit_fast.labels import class_names
from deit_fast.models.build import build_model
from deit_fast.recipe import Recipe

BATCH = 64


class LoadedModel(Classifier):
    """A model in evaluation mode with what is needed to use it. `model` is the bare one, with timm's interface."""

    def __init__(self, model: nn.Module, recipe: Recipe, classes: list[str], device: torch.device) -> None:
        super().__init__(model, recipe, choose_dtype(recipe.run, device), device)
        self.recipe = recipe
        self.classes = classes
        """[K] names of the classes in the order of the head: folder names, WordNet ids for ImageNet."""
        self.names = class_names(classes)
        """[K] the same for people: "tench, Tinca tinca" for n01440764."""
        self.device = device
        self.eval()

    @property
    def transform(self) -> transforms.Compose:
        """PIL image -> normalised float32 [3, S, S], for loaders of one's own: torchvision's form of the evaluation."""
        size, data = self.recipe.model.image_size, self.recipe.data
        return transforms.Compose(
            [
                transforms.RGB(),
                transforms.Resize(int(size / data.eval_crop_ratio), transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(size),
                transforms.ToImage(),
                transforms.ToDtype(torch.float32, scale=True),
                transforms.Normalize(data.mean, data.std),
            ]
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of images [B, 3, S, S]: uint8 pixels, or floats that are normalised already."""
        return self.logits(self.normalise(images) if images.dtype == torch.uint8 else images)


@dataclass(frozen=True)
class Prediction:
    """The most likely classes of one image, best first, or why there are none."""

    image: str
    labels: list[int]
    scores: list[float]
    """Probabilities, the softmax of the logits."""
    names: list[str]
    error: str | None = None


def load_model(checkpoint: str | Path, ema: bool = False, overrides: Sequence[str] = ()) -> LoadedModel:
    """The model of a checkpoint, on the GPU if there is one; `overrides` are section.key=value words for its recipe.

    ema: its moving average. model.image_size=384 resamples position embeddings. Raises RecipeError or RunError.
    """
    weights = load_weights(Path(checkpoint), ema)
    recipe = weights.recipe.override(overrides)
    device = join_world().device
    model = build_model(recipe.model).to(device).to(memory_format=torch.channels_last)
    initialise(model, weights.tensors)
    classes = weights.classes or [str(label) for label in range(recipe.model.classes)]
    return LoadedModel(model, recipe, classes, device)


@torch.no_grad()
def predict(
    model: LoadedModel,
    images: GivenImage | Sequence[GivenImage],
    top_k: int = 5,
    *,
    batch: int = BATCH,
    flip: bool = False,
    allow_urls: bool = False,
) -> list[Prediction]:
    """The `top_k` most likely classes of each image: paths, PIL images or uint8 arrays [H, W, 3].

    flip: average the logits of the image and its mirror image. An image that cannot be read has a Prediction with
    `error` set, and costs the others nothing. Raises RunError for URLs, unless they are allowed.
    """
    source = ImageList(_listed(images), allow_urls)
    found: dict[int, Prediction] = {}
    for indices, pixels in readable_batches(source, model.recipe, batch, model.device, cpu_threads()):
        if isinstance(pixels, str):
            found[indices[0]] = Prediction(source.name(indices[0]), [], [], [], pixels)
            continue
        logits = model(pixels)
        if flip:
            logits = (logits + model(pixels.flip(3))) / 2
        scores, labels = logits.softmax(1).topk(min(top_k, logits.shape[1]))
        for index, ranked, probabilities in zip(indices, labels.tolist(), scores.tolist(), strict=True):
            names = [model.names[label] for label in ranked]
            found[index] = Prediction(source.name(index), ranked, probabilities, names)
    return [found[index] for index in range(len(source))]


@torch.no_grad()
def extract_features(
    model: LoadedModel,
    images: GivenImage | Sequence[GivenImage],
    layers: int | Sequence[int] | None = None,
    pool: str | None = None,
    *,
    batch: int = BATCH,
    allow_urls: bool = False,
) -> Tensor | list[Tensor]:
    """Features of N images, float32 on the CPU.

    Without `layers`, what the head sees: [N, D]; of a distilled model, of both heads: [N, 2, D]. layers: blocks by
    number, negative from the end, or the last n of them; a tensor for each, of the block's output [N, D, h, w], with
    pool="avg" its mean [N, D], with pool="token" the class token's [N, D]. Raises RunError for an image that cannot
    be read and for a pool that the model has not.
    """
    if pool not in (None, "avg", "token"):
        raise RunError(f"pool={pool!r}: expected 'avg', 'token' or None")
    source = ImageList(_listed(images), allow_urls)
    batches: list[list[Tensor]] = []
    for _, pixels in readable_batches(source, model.recipe, batch, model.device, cpu_threads()):
        if isinstance(pixels, str):
            raise RunError(pixels)
        inputs = model.normalise(pixels)
        batches.append([each.float().cpu() for each in _features(model.model, inputs, layers, pool)])
    joined = [torch.cat(each) for each in zip(*batches, strict=True)]
    return joined if layers is not None else joined[0]


def print_predictions(found: Sequence[Prediction], kind: str | None = None) -> None:
    """Prints to stdout: kind "json", "csv" (a line for each image and rank), or None for people to read."""
    if kind == "json":
        print(json.dumps([asdict(each) for each in found], indent=2))
        return
    if kind == "csv":
        table = csv.writer(sys.stdout, lineterminator="\n")
        table.writerow(("image", "rank", "label", "name", "score", "error"))
        for each in found:
            ranked = zip(each.labels, each.names, each.scores, strict=True)
            table.writerows((each.image, rank, *columns, "") for rank, columns in enumerate(ranked, start=1))
            if each.error:
                table.writerow((each.image, "", "", "", "", each.error))
        return
    for each in found:
        best = ", ".join(f"{name} {100 * score:.1f} %" for name, score in zip(each.names, each.scores, strict=True))
        print(f"{each.image}: {best or 'cannot be read'}")


def _features(model: Any, inputs: Tensor, layers: int | Sequence[int] | None, pool: str | None) -> list[Tensor]:
    if layers is None:
        tokens = model.forward_features(inputs)
        if getattr(model, "num_prefix_tokens", 1) == 2:  # class and distillation token, each with its head
            return [tokens[:, :2]]
        return [model.forward_head(tokens, pre_logits=True)]
    indices = layers if isinstance(layers, int) else list(layers)
    if pool != "token":
        maps = model.forward_intermediates(inputs, indices=indices, intermediates_only=True)
        return [each.mean((2, 3)) for each in maps] if pool == "avg" else list(maps)
    if not getattr(model, "num_prefix_tokens", 0):
        raise RunError("pool='token': expected a model with a class token in its blocks; pool='avg' averages patches")
    pairs = model.forward_intermediates(inputs, indices=indices, return_prefix_tokens=True, intermediates_only=True)
    return [prefix[:, 0] for _, prefix in pairs]


def _listed(images: GivenImage | Sequence[GivenImage]) -> list[GivenImage]:
    return list(images) if isinstance(images, list | tuple) else [images]  # type: ignore[list-item]
