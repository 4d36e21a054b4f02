"""A picture of the views that training sees: a row for each image, the evaluation view first, then augmented views."""

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from deit_fast.data.augment.erase import EraseParams, draw_erasing, erase
from deit_fast.data.augment.view_params import draw_views, eval_geometry
from deit_fast.data.loader.broken import raise_culprit
from deit_fast.data.loader.pipeline import eval_pipeline, train_inputs, train_pipeline
from deit_fast.data.sources.base import Source, read_image
from deit_fast.recipe.schema import Recipe

_GAP = 4  # white pixels between the pictures
_LEAST = 96  # px; a smaller view is enlarged
_CPU = torch.device("cpu")


def preview_grid(recipe: Recipe, source: Source, count: int = 8, views: int = 6) -> NDArray[np.uint8]:
    """A grid of `count` images spread over the source, uint8 [height, width, 3], a row for each image.

    A row has the image's evaluation view and then `views` augmented views, made by the pipelines of evaluation and
    training. Raises DataError, naming the file, for an image that cannot be read or decoded, RunError where DALI is
    missing.
    """
    size = recipe.model.image_size
    indices = np.unique(np.linspace(0, len(source) - 1, count).astype(np.int64))
    stored = [read_image(source, index) for index in indices.tolist()]
    prepared = [source.prepare(*image) for image in zip(indices.tolist(), stored, strict=True)]
    encoded, sizes = [each[0] for each in prepared], np.array([each[1] for each in prepared], np.int32)
    plain = [encoded, eval_geometry(sizes, size, recipe.data.eval_crop_ratio)]
    backend = recipe.run.image_backend
    originals = eval_pipeline(size, lambda: plain, len(indices), _CPU, 2, recipe.data.eval_interpolation, backend)
    repeated, numbers = np.repeat(indices, views), np.tile(np.arange(views), len(indices))
    place = size, recipe.run.seed, 0, repeated, numbers
    params = draw_views(recipe.augment, *place, np.repeat(sizes, views, axis=0))
    inputs = train_inputs(recipe.augment, size, [image for image in encoded for _ in range(views)], params)
    augmented = train_pipeline(recipe.augment, size, lambda: inputs, len(repeated), _CPU, threads=2, backend=backend)
    try:
        pictures = originals.run(), augmented.run()
    except RuntimeError as error:
        raise_culprit(source, indices, encoded, error)
    if recipe.augment.erase:
        pictures = pictures[0], _erase_pixels(recipe, pictures[1], draw_erasing(recipe.augment, *place))
    rows = torch.cat([pictures[0][:, None], pictures[1].reshape(len(indices), views, 3, size, size)], dim=1)
    framed = torch.nn.functional.pad(rows, (_GAP, 0, _GAP, 0), value=255)  # left and top of every view
    grid = framed.permute(0, 3, 1, 4, 2).reshape(len(indices) * (size + _GAP), -1, 3)
    return np.pad(grid.numpy(), ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255)


def preview(recipe: Recipe, source: Source, path: Path, count: int = 8, views: int = 6) -> None:
    """Writes `preview_grid` as a PNG to `path`, small views enlarged without blur by a whole factor.

    Raises what `preview_grid` raises, and OSError where writing fails.
    """
    grid = Image.fromarray(preview_grid(recipe, source, count, views))
    factor = math.ceil(_LEAST / recipe.model.image_size)
    grid.resize((grid.width * factor, grid.height * factor), Image.Resampling.NEAREST).save(path, format="PNG")


def _erase_pixels(recipe: Recipe, images: torch.Tensor, drawn: EraseParams) -> torch.Tensor:
    """The training step's erasing on uint8 views [B, 3, S, S]; noise outside 0..255 is clamped."""
    mean, std = (255 * torch.tensor(each).view(1, 3, 1, 1) for each in (recipe.data.mean, recipe.data.std))
    boxes, keys = torch.from_numpy(drawn.boxes), torch.from_numpy(drawn.keys)
    erased = erase((images.float() - mean) / std, boxes, keys, recipe.augment.erase_mode)
    return (erased * std + mean).round().clamp(0, 255).byte()
