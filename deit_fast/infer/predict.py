"""Using trained models: loads a checkpoint, classifies images, extracts features."""

import csv
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deit_fast.convert.detect import Weights
from deit_fast.convert.fit import Change, build_initialised, need_head
from deit_fast.convert.pretrained import open_weights
from deit_fast.data.sources.pixels import as_rgb
from deit_fast.infer.images import GivenImage, ImageList, readable_batches
from deit_fast.infer.precision import Classifier, average_mirrored, choose_dtype
from deit_fast.infer.ranking import are_finite, rank_classes
from deit_fast.models.build import family_of
from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.sections import Model
from deit_fast.runtime.errors import RunError, printable
from deit_fast.runtime.files import json_text
from deit_fast.runtime.hardware import cpu_threads
from deit_fast.runtime.world import choose_device
from deit_fast.zoo import find_architecture
from deit_fast.zoo.class_names import class_names, default_classes

if TYPE_CHECKING:
    from torchvision.transforms import v2 as transforms

BATCH = 64


class LoadedModel(Classifier):
    """A model in evaluation mode with everything needed to use it. `model` is the bare model, with timm's interface."""

    def __init__(
        self, model: nn.Module, recipe: Recipe, classes: list[str], device: torch.device,
        changes: Sequence[Change] = (), notes: Sequence[str] = (),
    ) -> None:  # fmt: skip
        super().__init__(model, recipe, choose_dtype(recipe.run, device), device)
        self.recipe = recipe
        self.changes = list(changes)
        """Differences between the checkpoint and the model; empty if every weight was taken unchanged."""
        self.notes = list(notes)
        """Lines about facts from the text beside the weights, such as the crop in a config.json."""
        self.classes = classes
        """[K] names of the classes in the order of the head: folder names, WordNet ids for ImageNet."""
        self.names = class_names(classes)
        """[K] readable names: "tench, Tinca tinca" for n01440764."""
        self.device = device
        self.eval()

    @property
    def transform(self) -> "transforms.Compose":
        """PIL image -> normalised float32 [3, S, S]: the evaluation's preprocessing as torchvision transforms."""
        size, data = self.recipe.model.image_size, self.recipe.data
        from torchvision.transforms import v2 as transforms  # importing it imports the compiler

        return transforms.Compose(
            [
                as_rgb,
                transforms.Resize(
                    int(size / data.eval_crop_ratio), transforms.InterpolationMode(data.eval_interpolation)
                ),
                transforms.CenterCrop(size),
                transforms.ToImage(),
                transforms.ToDtype(torch.float32, scale=True),
                transforms.Normalize(data.mean, data.std),
            ]
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of images [B, 3, S, S]: uint8 pixels, or floats that are already normalised."""
        return self.logits(self.normalise(images) if images.dtype == torch.uint8 else images)


@dataclass(frozen=True)
class Prediction:
    """The k most likely classes of one image, best first; or the reason why there are none."""

    image: str
    """The image's path or URL; "image N" for pixels."""
    labels: list[int]
    """Class indices."""
    scores: list[float]
    """Probabilities in [0, 1]: the softmax of the logits."""
    names: list[str]
    """Readable class names."""
    error: str | None = None
    """Why the image is unreadable, in words; None if it is readable."""


def load_model(checkpoint: str | Path, ema: bool = False, overrides: Sequence[str] = ()) -> LoadedModel:
    """The model of a checkpoint, on the GPU if there is one.

    checkpoint: any format that load_weights reads, by path, by URI or by the name of published weights; or a run's
    folder, whose best checkpoint is taken, else its last one. ema: takes its moving average. overrides:
    section.key=value words for its recipe; with another model.image_size, position embeddings are resampled. If a file
    has no class names and its number of classes is that of a known list, it gets this list's names
    (`class_names.default_classes`): for 1,000 classes ImageNet-1k's WordNet ids.

    No process group is joined: in a program that torchrun started, each process loads a model of its own, on the GPU of
    its LOCAL_RANK. Raises RecipeError or RunError.
    """
    return build_loaded(open_weights(checkpoint, ema), overrides)


def build_loaded(weights: Weights, overrides: Sequence[str] = ()) -> LoadedModel:
    """`load_model` for weights that were read before."""
    recipe = weights.recipe.taken_over(overrides)
    need_head(weights, recipe)
    device = choose_device(recipe.run.device)
    model, changes = build_initialised(recipe.model, weights)
    count = recipe.model.classes
    classes = weights.classes if weights.classes and len(weights.classes) == count else default_classes(count)
    on_device: Any = model.to(device)
    return LoadedModel(on_device.to(memory_format=torch.channels_last), recipe, classes, device, changes, weights.say())


def _loaded(model: LoadedModel | str | Path) -> LoadedModel:
    return load_model(model) if isinstance(model, str | Path) else model


@torch.no_grad()
def predict(
    model: LoadedModel | str | Path,
    images: GivenImage | Sequence[GivenImage],
    top_k: int = 5,
    *,
    batch: int = BATCH,
    flip: bool = False,
    allow_urls: bool = False,
) -> list[Prediction]:
    """The `top_k` most likely classes of each image: paths, PIL images or arrays, uint8 or uint16, [H, W, 3] or [H, W].

    model: a loaded one, or what `load_model` takes, which is then loaded at each call. flip: averages the
    logits of the image and its mirror image, which harms a model that was trained without mirroring.

    An unreadable image gets a Prediction with `error` set, and does not affect the others. Of classes with equal
    logits, the one with the smaller label comes first (infer/ranking.py). Raises RunError for URLs, unless `allow_urls`
    is set, and for logits that are not finite.
    """
    if top_k < 1:
        raise RunError(f"top_k={top_k}: expected 1 or more")
    model = _loaded(model)
    source = ImageList(_listed(images), allow_urls)
    found: dict[int, Prediction] = {}
    classify = average_mirrored(model) if flip else model
    for indices, pixels in readable_batches(source, model.recipe, batch, model.device, cpu_threads()):
        if isinstance(pixels, str):
            found[indices[0]] = Prediction(source.name(indices[0]), [], [], [], pixels)
            continue
        logits = classify(pixels)
        if not (finite := are_finite(logits)).all():
            image = source.name(indices[int(finite.logical_not().nonzero()[0])])
            raise RunError(f"{printable(image)}: the model's logits are not finite: expected useful weights")
        labels = rank_classes(logits, top_k)
        scores = logits.softmax(1).gather(1, labels)
        for index, ranked, probabilities in zip(indices, labels.tolist(), scores.tolist(), strict=True):
            names = [model.names[label] for label in ranked]
            found[index] = Prediction(source.name(index), ranked, probabilities, names)
    return [found[index] for index in range(len(source))]


@torch.no_grad()
def extract_features(
    model: LoadedModel | str | Path,
    images: GivenImage | Sequence[GivenImage],
    layers: int | Sequence[int] | None = None,
    pool: str | None = None,
    *,
    batch: int = BATCH,
    allow_urls: bool = False,
) -> Tensor | list[Tensor]:
    """Features of N images, float32 on the CPU. model: as for `predict`.

    Without `layers` the features are the head's input, after the final norm: [N, D]. For ViTs, CaiT and PatchConvNet
    this is the class token (for PatchConvNet with a token per class, their mean). For ResMLP and for ViTs with
    model.pool=avg it is the mean of the patches. For a distilled model it is the input of both heads, [N, 2, D], class
    token first.

    layers: numbers of blocks, negative ones from the end; or an int n for the last n blocks. Returns a tensor for each,
    in that order: the block's output for the patches [N, D, h, w], before any norm; with pool="avg" its mean [N, D],
    with pool="token" the class token [N, D]. Only ViTs have a class token in their blocks: in CaiT and PatchConvNet it
    comes after the blocks, and ResMLP has none. Raises RunError for an unreadable image, and for blocks and a pool that
    the model lacks.
    """
    if pool not in (None, "avg", "token"):
        raise RunError(f"pool={pool!r}: expected 'avg', 'token' or None")
    if pool is not None and layers is None:
        raise RunError(f"pool={pool!r}: expected with layers; without, the features are what the head sees")
    model = _loaded(model)
    source = ImageList(_listed(images), allow_urls)
    batches: list[list[Tensor]] = []
    for _, pixels in readable_batches(source, model.recipe, batch, model.device, cpu_threads()):
        if isinstance(pixels, str):
            raise RunError(pixels)
        inputs = model.normalise(pixels)
        found = _features(model.model, model.recipe.model, inputs, layers, pool)
        batches.append([each.float().cpu() for each in found])
    joined = [torch.cat(each) for each in zip(*batches, strict=True)]
    return joined if layers is not None else joined[0]


def print_predictions(found: Sequence[Prediction], kind: str | None = None) -> None:
    """Prints predictions to stdout: "json", "csv" (a line for each image and rank), or None for a readable form."""
    if kind == "json":
        print(json_text([asdict(each) for each in found]))
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
        print(printable(f"{each.image}: {best or 'cannot be read'}"))


def _features(
    model: Any, section: Model, inputs: Tensor, layers: int | Sequence[int] | None, pool: str | None
) -> list[Tensor]:
    entry = find_architecture(section.name)
    prefix = family_of(section.name).prefix_tokens(entry, section)
    if layers is None:
        tokens = model.forward_features(inputs)
        if entry.distilled:  # class and distillation token, each with its own head
            return [tokens[:, :2]]
        return [model.forward_head(tokens, pre_logits=True)]
    if pool == "token" and not prefix:
        raise RunError("pool='token': expected a model with a class token in its blocks; pool='avg' averages patches")
    chosen = _block_numbers(layers, len(model.blocks))
    outputs: dict[int, Tensor] = {}
    hooks = [
        model.blocks[number].register_forward_hook(lambda _, __, out, number=number: outputs.update({number: out}))
        for number in set(chosen)
    ]
    try:
        model.forward_features(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return [_pooled(outputs[number], prefix, pool) for number in chosen]


def _block_numbers(layers: int | Sequence[int], depth: int) -> list[int]:
    """Block numbers counted from the first block. Raises RunError for a block that does not exist."""
    wrong = [layers] if isinstance(layers, int) and not 1 <= layers <= depth else []
    if not isinstance(layers, int):
        wrong = [number for number in layers if not -depth <= number < depth]
    if wrong:
        raise RunError(f"layers={layers}: expected numbers of the {depth} blocks, or how many of the last")
    if isinstance(layers, int):
        return list(range(depth - layers, depth))
    return [number % depth for number in layers]


def _pooled(output: Tensor, prefix: int, pool: str | None) -> Tensor:
    """A block's output, tokens [B, N, D] or a map [B, h, w, D], in the form that `extract_features` returns."""
    if pool == "token":
        return output[:, 0]
    if output.ndim == 3:  # images are square, so the grid of patches is square
        side = math.isqrt(output.shape[1] - prefix)
        output = output[:, prefix:].unflatten(1, (side, side))
    return output.mean((1, 2)) if pool == "avg" else output.permute(0, 3, 1, 2)


def _listed(images: GivenImage | Sequence[GivenImage]) -> list[GivenImage]:
    return list(images) if isinstance(images, list | tuple) else [images]  # type: ignore[list-item]
