"""The first batch as the network gets it: augmented, erased and mixed, each image with its operations in words."""

import numpy as np
import torch
from numpy.typing import NDArray

from deit_fast.data.augment.erase import draw_erasing, erase
from deit_fast.data.augment.mix import draw_mix, mix_images
from deit_fast.data.augment.policies import POLICIES, operation_names
from deit_fast.data.augment.view_params import ViewParams, draw_views
from deit_fast.data.loader.pipeline import train_inputs, train_pipeline
from deit_fast.data.sources.base import Source, read_image
from deit_fast.recipe.schema import Recipe

_THREE = ("greyscale", "solarise", "blur")
_JITTER = ("brightness", "contrast", "saturation")
Sample = tuple[NDArray[np.uint8], str, str]
"""The picture uint8 [S, S, 3], its class or classes with their shares, and its operations."""


def training_samples(recipe: Recipe, source: Source, count: int = 24) -> list[Sample]:
    """`count` training inputs, of images spread over the source, with the draws of the recipe's seed at step 0.

    Images are mixed with one another, as in a batch of training. Raises what `preview` raises.
    """
    count = min(count - count % 2, len(source) - len(source) % 2)
    if count < 2:
        return []
    size, seed = recipe.model.image_size, recipe.run.seed
    indices = np.linspace(0, len(source) - 1, count).astype(np.int64)
    indices = np.random.default_rng(seed).permutation(indices)
    stored = [read_image(source, index) for index in indices.tolist()]
    prepared = [source.prepare(*image) for image in zip(indices.tolist(), stored, strict=True)]
    sizes = np.array([each[1] for each in prepared], np.int32)
    place = size, seed, 0, indices, np.zeros_like(indices)
    params = draw_views(recipe.augment, *place, sizes)
    inputs = train_inputs(recipe.augment, size, [each[0] for each in prepared], params)
    views = train_pipeline(recipe.augment, size, lambda: inputs, count, torch.device("cpu"), threads=2).run()
    done = [operations_of(recipe, params, place) for place in range(count)]
    names = [source.classes[source.labels[index]] for index in indices.tolist()]
    mean, std = (255 * torch.tensor(each).view(1, 3, 1, 1) for each in (recipe.data.mean, recipe.data.std))
    images = (views.float() - mean) / std
    if recipe.augment.erase:
        drawn = draw_erasing(recipe.augment, *place)
        images = erase(images, torch.from_numpy(drawn.boxes), torch.from_numpy(drawn.keys), recipe.augment.erase_mode)
        for number, boxes in enumerate(drawn.boxes):
            done[number] += ["erased"] * bool((boxes[:, 2] > boxes[:, 0]).any())
    if recipe.mix.active:
        mixed = draw_mix(recipe.mix, recipe.run.seed_of("mix"), 0, np.arange(count), count, size)
        images = mix_images(
            images, torch.from_numpy(mixed.lam), torch.from_numpy(mixed.box), torch.from_numpy(mixed.cutmix)
        )
        partners = names[::-1]
        for number, (share, pasted) in enumerate(zip(mixed.lam.tolist(), mixed.cutmix.tolist(), strict=True)):
            if share < 1:
                names[number] = f"{names[number]} {100 * share:.0f} %, {partners[number]} {100 * (1 - share):.0f} %"
                done[number].append("CutMix" if pasted else "mixup")
    pictures = (images * std + mean).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return [(picture, name, ", ".join(words) or "cropped only")
            for picture, name, words in zip(pictures, names, done, strict=True)]  # fmt: skip


def operations_of(recipe: Recipe, params: ViewParams, place: int) -> list[str]:
    """The operations on view `place` after the crop, in order, with their drawn parameters."""
    words = ["flipped"] if params.flip[place] else []
    operation = int(params.operation[place])
    if operation >= 0:
        blur = f" {params.sigma[place]:.1f} px" if _THREE[operation] == "blur" else ""
        words.append(f"{_THREE[operation]}{blur}")
    if recipe.augment.policy in POLICIES:
        known = operation_names(recipe.augment)
        words += [known[each] for each in params.policy_op[place].tolist() if each >= 0]
    if recipe.augment.color_jitter:
        words += [f"{_JITTER[kind]} {params.jitter[place, kind]:.2f}" for kind in params.order[place].tolist()]
    return words
