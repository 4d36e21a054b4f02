"""The sections `data`, `augment` and `mix`: which images, what is done to each, and how they are mixed."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from deit_fast.recipe.sections.base import Count, Fraction, NonNegative, Positive, Section, Seed, Triple, When

_RESIZED_CROP = When("crop", ("rrc", "rrc_linear"))
_RAND = When("policy", ("rand_augment",))
_ERASING = When("erase", (0.0,), unless=True)


class Data(Section):
    """The images: which, how often each, and how they are evaluated."""

    repeats: Count = 1
    """Repeated augmentation: differently augmented views of each image in a batch (3 in DeiT)."""
    layout: Literal["spread", "together"] = "spread"
    """Where an image's views go. spread: into different mixing groups, as the reference deals them out over its GPUs.
    together: next to each other, in one process, which then decodes the image once."""
    block: Annotated[int, Field(ge=0)] = 0
    """Of data in shards: how many of them are shuffled together, so that a disk holds few at a time. 0 shuffles all
    images. The shards themselves come in a new order each epoch."""
    lanes: Count = 1
    """Parts of an epoch that are read side by side, one or more by each node, which then fetches these shards alone;
    with data.block. It divides the mixing groups of a batch."""
    cache_limit: Positive | None = None
    """GiB of a node's disk that shards from a store may take; null: 80 % of what is free."""
    category: Literal["name", "kingdom", "phylum", "class", "order", "supercategory", "family", "genus"] = "name"
    """iNaturalist: the level of its taxonomy that is the class; name is the species."""
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each class's training images that is held out for validation, where the data have no validation split:
    the others are trained on. 0: no image is held out, and such data are not evaluated."""
    val_seed: Annotated[Seed, When("val_fraction", (0.0,), unless=True)] = 0
    """Seed of which images are held out. It is not run.seed, so that runs with other seeds are scored on the same."""
    may_change: bool = False
    """Go on from a checkpoint, at its step, although images were added, removed, relabelled or stored anew since."""
    max_bad: Fraction = 0.001
    """Training goes on without images that cannot be read or decoded, up to this share of the data set."""
    eval_crop_ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Evaluation resizes the shorter side to image_size / ratio, then crops the centre. 1 for images of 32 px and less,
    which the reference leaves as they are."""
    eval_interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Interpolation of the evaluation's resize, which antialiases."""
    mean: Triple = (0.485, 0.456, 0.406)
    """Channel means, of images in [0, 1]."""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """Channel standard deviations, of images in [0, 1]."""

    @property
    def decode_once(self) -> bool:
        """Whether an image is decoded once for all its views in a process."""
        return self.repeats > 1 and self.layout == "together"

    def problems(self) -> Iterator[str]:
        if self.lanes > 1 and not self.block:
            yield f"data.lanes={self.lanes}: expected 1 with data.block=0, which shuffles the images of all shards"


class Augment(Section):
    """What is done to each view of an image in training."""

    crop: Literal["rrc", "src", "rrc_linear", "pad", "center"] = "rrc"
    """rrc: RandomResizedCrop. src: Simple Random Crop (resize the shorter side, 4 px reflect padding, random crop).
    rrc_linear: PASSL's, whose aspect ratio is uniform and whose area always fits. pad: as src with black padding, for
    images of 32 px and less. center: as in evaluation. scale and ratio are of rrc and rrc_linear."""
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    """Interpolation of the resize, which antialiases. random: one of the two per view. The policies' own rotations stay
    bicubic."""
    scale: Annotated[tuple[Positive, Positive], _RESIZED_CROP] = (0.08, 1.0)
    """Range of RandomResizedCrop's area, as a fraction of the image's."""
    ratio: Annotated[tuple[Positive, Positive], _RESIZED_CROP] = (3 / 4, 4 / 3)
    """Range of RandomResizedCrop's aspect ratio, width / height; drawn log-uniformly."""
    flip: Fraction = 0.5
    """Probability of the horizontal flip."""
    policy: Literal["three_augment", "rand_augment", "auto_augment", "none"] = "three_augment"
    """three_augment: one of greyscale, solarise, blur. rand_augment: timm's rand-mM-mstdS-inc1. auto_augment: the
    ImageNet policy of AutoAugment, timm's "original". What begins with rand_ is of rand_augment. Operations
    are bicubic, where deit3-jax draws the interpolation of each."""
    color_jitter: Fraction = 0.3
    """Brightness, contrast and saturation factors are drawn from [1 - x, 1 + x], applied in random order."""
    rand_ops: Annotated[Count, _RAND] = 2
    """RandAugment: operations drawn per image."""
    rand_magnitude: Annotated[float, Field(ge=0, le=10), _RAND] = 9.0
    """RandAugment: mean magnitude, of 10."""
    rand_std: Annotated[NonNegative, _RAND] = 0.5
    """RandAugment: standard deviation of the magnitude."""
    rand_extra: Annotated[tuple[str, ...], _RAND] = ()
    """RandAugment: operations that it draws from beside timm's, by their names in data/augment/operations/."""
    erase: Fraction = 0.0
    """Random erasing: probability per view, on normalised pixels; above 0 there are erase_mode and erase_count."""
    erase_mode: Annotated[Literal["pixel", "rand", "const"], _ERASING] = "pixel"
    """What a box is filled with. pixel: normal noise per value. rand: one normal colour. const: zeros, the mean."""
    erase_count: Annotated[Count, _ERASING] = 1
    """Boxes per erased view, at most; timm draws 1 to this many, which share the area."""

    def problems(self) -> Iterator[str]:
        for key, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if low > high:
                yield f"augment.{key}={[low, high]}: expected low <= high"
        if self.scale[1] > 1:
            yield f"augment.scale={list(self.scale)}: expected at most 1, the whole image"
        if self.policy in ("rand_augment", "auto_augment") and self.color_jitter:
            yield (
                f"augment.color_jitter={self.color_jitter}: expected 0 with augment.policy={self.policy!r} "
                "(the reference ignores it silently)"
            )


class Mix(Section):
    """Mixup and CutMix."""

    mixup: NonNegative = 0.8
    """Mixup's Beta(alpha, alpha); 0 is off."""
    cutmix: NonNegative = 1.0
    """CutMix's Beta(alpha, alpha); 0 is off."""
    cutmix_minmax: tuple[Fraction, Fraction] | None = None
    """Range of the sides of CutMix's box, as fractions of the image's, instead of a side drawn from Beta."""
    mode: Literal["batch", "pair", "elem"] = "batch"
    """What shares a draw. batch: mix.group images. pair: an image and its partner. elem: nothing."""
    prob: Fraction = 1.0
    """Probability that what shares a draw is mixed at all."""
    switch_prob: Fraction = 0.5
    """Probability of CutMix when both are on."""
    group: Annotated[int, Field(ge=2, multiple_of=2)] = 256
    """Images that share one draw of operation, lambda and box: the reference's batch per GPU."""

    @property
    def active(self) -> bool:
        """Whether anything is mixed."""
        return self.prob > 0 and (self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None)

    def problems(self) -> Iterator[str]:
        if self.cutmix_minmax is not None and not 0 < self.cutmix_minmax[0] < self.cutmix_minmax[1]:
            yield f"mix.cutmix_minmax={list(self.cutmix_minmax)}: expected 0 < low < high <= 1"
