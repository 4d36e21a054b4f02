"""The parts of a report that need validation images: confusion matrix, worst mistakes as pictures, attention."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from deit_fast.checkpoint.format import sealed_digest
from deit_fast.convert.locate import CHECKPOINTS, RUN_FILES
from deit_fast.data.sources.base import Source
from deit_fast.data.sources.headers import open_image
from deit_fast.data.sources.identity import identify
from deit_fast.data.sources.pixels import as_rgb
from deit_fast.infer.evaluate import Scored
from deit_fast.infer.outcomes import Outcomes
from deit_fast.infer.pages import page
from deit_fast.infer.pages.attention import attention_maps, has_attention, overlay
from deit_fast.infer.predict import LoadedModel
from deit_fast.infer.report import OUTCOMES, confusion_matrix
from deit_fast.runtime.errors import printable

_NUMBERED = 40  # most classes in a matrix with numbers; for more classes, the most frequent confusions are listed
_PAIRS = 30
_MISTAKES = 32
_ATTENDED = 8
_SIDE = 224  # largest side of a picture in a page, px


@dataclass(frozen=True)
class Evaluated:
    """An evaluation of a run's weights, image by image."""

    outcomes: Outcomes
    labels: NDArray[np.int64]
    """[N]."""
    classes: list[str]
    digest: str
    """Digest of the images, from data/sources/identity.py."""

    @property
    def hits(self) -> int:
        """The number of images that are classified correctly."""
        return int((self.outcomes.predictions == self.labels).sum())

    @property
    def top1(self) -> float:
        """Top-1, %."""
        return 100 * self.hits / len(self.labels)


def as_evaluated(scored: Scored) -> Evaluated:
    """The `Evaluated` of an evaluation in this process."""
    source = scored.source
    return Evaluated(scored.outcomes, source.labels.astype(np.int64), source.classes, identify(source).digest)


def read_evaluated(folder: Path) -> Evaluated | None:
    """The evaluation that write_report wrote into a folder of a run; None where a file is missing.

    None also if the run has gone on since: the evaluation is of neither its best nor its last checkpoint.
    """
    now = [sealed_digest(folder.parent / CHECKPOINTS / name) for name in RUN_FILES]
    try:
        with np.load(folder / OUTCOMES) as held:
            if "weights" in held and str(held["weights"]) and any(now) and str(held["weights"]) not in now:
                return None
            outcomes = Outcomes(held["predictions"], held["confidences"], held["in_top5"])
            return Evaluated(outcomes, held["labels"], held["classes"].tolist(), str(held["digest"]))
    except (OSError, ValueError, KeyError):
        return None


def confusion(found: Evaluated) -> str:
    """The confusion matrix with numbers, or for many classes a list of the most frequent confusions."""
    labels, predictions, names = found.labels, found.outcomes.predictions, found.classes
    if len(names) > _NUMBERED:
        wrong = labels != predictions
        pairs, times = np.unique(np.stack([labels[wrong], predictions[wrong]], axis=1), axis=0, return_counts=True)
        order = np.argsort(-times, kind="stable")[:_PAIRS]
        images = np.bincount(labels, minlength=len(names))
        most = zip(pairs[order].tolist(), times[order].tolist(), strict=True)
        listed = [(names[label], names[taken], f"{count}", f"{100 * count / images[label]:.0f} %")
                  for (label, taken), count in most]  # fmt: skip
        worst = _lowest(labels, ~wrong, names)
        return page.table(("label", "taken for", "images", "of the class"), listed, (2, 3)) + worst
    matrix = confusion_matrix(labels, predictions, len(names))
    totals = np.maximum(matrix.sum(axis=1), 1)
    heads = "".join(f"<th><span>{page.escape(name)}</span></th>" for name in names)
    rows = []
    for label, (name, counts) in enumerate(zip(names, matrix.tolist(), strict=True)):
        cells = []
        for column, count in enumerate(counts):
            share = count / totals[label]
            color = "heat" if column == label else "wrong"
            shade = f' style="background: rgba(var(--{color}), {0.08 + 0.8 * share:.2f})"' if count else ""
            meaning = f"{name} taken for {names[column]}: {count} of {totals[label]}"
            cells.append(f'<td{shade} title="{page.escape(meaning)}">{count or ""}</td>')
        rows.append(f"<tr><th>{page.escape(name)}</th>{''.join(cells)}<td><b>{100 * counts[label] / totals[label]:.1f}"
                    "</b></td></tr>")  # fmt: skip
    return (
        f'<div class="wide"><table class="matrix"><thead><tr><th>label \\ prediction</th>{heads}<th>%</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _lowest(labels: NDArray[np.int64], right: NDArray[np.bool_], names: list[str]) -> str:
    """The classes with the lowest top-1; labels and whether each image is classified correctly: [N]."""
    images, hits = (np.bincount(each, minlength=len(names)) for each in (labels, labels[right]))
    shares = np.where(images > 0, hits / np.maximum(images, 1), np.inf)  # a class without images has no accuracy
    rows = [(names[label], f"{images[label]:,}", f"{100 * shares[label]:.1f}")
            for label in np.argsort(shares, kind="stable")[:_PAIRS].tolist() if images[label]]  # fmt: skip
    return page.paragraph("The classes with the lowest top-1:") + page.table(
        ("class", "images", "top-1, %"), rows, (1, 2)
    )


def mistakes(found: Evaluated, source: Source) -> str:
    """The most confident mistakes as pictures, in descending order of confidence."""
    wrong = np.flatnonzero(found.outcomes.predictions != found.labels)
    chosen = wrong[np.argsort(-found.outcomes.confidences[wrong], kind="stable")][:_MISTAKES].tolist()
    shown = []
    for index in chosen:
        taken, label = found.classes[found.outcomes.predictions[index]], found.classes[found.labels[index]]
        file, sure = Path(printable(source.name(index))).name, 100 * found.outcomes.confidences[index]
        caption = f"is {label}; {sure:.0f} % sure. {file}"
        shown.append(page.picture([thumbnail(source, index)], caption, taken))
    return page.pictures(shown)


def attention(model: LoadedModel, found: Evaluated, source: Source) -> str:
    """Images beside the attention of the class token; "" for models without one."""
    if not has_attention(model):
        return ""
    indices = np.unique(np.linspace(0, len(source) - 1, _ATTENDED).astype(np.int64)).tolist()
    transform, size = model.transform, model.recipe.model.image_size
    shown = []
    for index in indices:
        inputs = transform(_picture(source, index))
        weights = attention_maps(model.float(), inputs[None].to(model.device)).cpu()[0]
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (model.recipe.data.mean, model.recipe.data.std))
        seen = ((inputs * std + mean) * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        if size > _SIDE:
            seen = np.asarray(Image.fromarray(seen).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))
        label, taken = found.classes[found.labels[index]], found.classes[found.outcomes.predictions[index]]
        shown.append(
            page.picture([seen, overlay(seen, weights)], "" if taken == label else f"taken for {taken}", label)
        )
    return page.pictures(shown, pairs=True)


def thumbnail(source: Source, index: int) -> NDArray[np.uint8]:
    """The image uint8 [H, W, 3], at most _SIDE px on its longer side."""
    picture = _picture(source, index)
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def _picture(source: Source, index: int) -> Image.Image:
    return as_rgb(open_image(source.read(index)))
