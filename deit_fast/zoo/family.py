"""The types of the zoo's rows: a model family, its architectures, and published facts about them. No torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

_URL = "https://dl.fbaipublicfiles.com/deit/"


@dataclass(frozen=True)
class Architecture:
    """The sizes of a model. A family with additional sizes derives a class from this one."""

    embed_dim: int
    """D, the channels of a token."""
    depth: int
    """Number of blocks, without CaiT's two class-attention blocks and PatchConvNet's aggregation layer."""
    num_heads: int
    """Number of attention heads; 1 in ResMLP, which has no attention."""
    patch_size: int
    """Side of a patch, px."""
    family: str
    """Name of the entry's module in deit_fast/zoo/families/, and of the module in deit_fast/models/ that builds it."""
    layer_scale: float | None = 1e-4
    """LayerScale's initial value, unless a recipe sets another."""
    parallel: int = 1
    """Number of parallel attention branches, and of MLP branches, in a block (arXiv:2203.09795, section 3)."""
    distilled: bool = False
    """Whether there is a distillation token with its own head; the model then has timm's `set_distilled_training`."""
    class_tokens: bool = False
    """Whether each class has a token of its own (PatchConvNet)."""


@dataclass(frozen=True)
class Published:
    """One row of the zoo: an entry at a resolution, with one set of weights or none."""

    name: str
    """Name of the entry."""
    resolution: int
    """Side of the images, px."""
    params_m: float
    """Millions of parameters, with 1,000 classes."""
    gmacs: float
    """Billions of multiply-accumulates per image."""
    images_per_second: int | None = None
    """The authors' throughput on their machine, images per second."""
    peak_memory_mb: int | None = None
    """The authors' peak memory on their machine, MB."""
    top1: float | None = None
    """ImageNet validation accuracy, %."""
    top1_v2: float | None = None
    """ImageNet V2 accuracy, %."""
    training: str | None = None
    """The data and the method of the weights' training; None if there are no weights."""
    weights: str | None = None
    """Address of the weights."""
    source: str | None = None
    """Source of accuracy, speed, memory and address; None if only the code is published."""
    tag: str | None = None
    """A word that tells these weights from others of the same entry and resolution; None if there are no weights."""

    @property
    def weights_name(self) -> str | None:
        """The full name of the weights, as `find_weights_row` takes it: ENTRY@PX:TAG. None if there are no weights."""
        return None if self.weights is None else f"{self.name}@{self.resolution}:{self.tag}"

    @property
    def weights_file(self) -> str | None:
        """The file name of the weights, which no other row has."""
        return None if self.weights is None else self.weights.rpartition("/")[2]


IN_1K = "ImageNet-1k"
IN_21K = "ImageNet-21k, ImageNet-1k"
DISTILLED = "ImageNet-1k, distilled"
DISTILLED_LONGER = "ImageNet-1k, distilled, 1000 epochs"
FROM_S60 = "ImageNet-1k, from S60"
DINO = "DINO"
_TAGS = {
    IN_1K: "1k", IN_21K: "21k", DISTILLED: "distilled", DISTILLED_LONGER: "distilled", FROM_S60: "from_s60",
    DINO: "dino",
}  # fmt: skip
UNKNOWN = (None, None)


def published_rows(readme: str, name: str, resolution: int, sizes: tuple[float, float],
                   speed: tuple[int | None, int | None],
                   *weights: tuple[str, float | None, float | None, str]) -> Iterator[Published]:  # fmt: skip
    """A row for each of (training, top-1, top-1 V2, file), by a README of facebookresearch/deit.

    sizes: millions of parameters, and billions of multiply-accumulates. speed: images per second, and MB. Rows without
    an accuracy are from timm, except for DINO's, whose files the README lists.
    """
    for training, top1, top1_v2, file in weights:
        source = "timm" if top1 is None and training != DINO else f"facebookresearch/deit {readme}"
        yield Published(name, resolution, *sizes, *speed, top1, top1_v2, training, _URL + file, source,
                        _TAGS[training])  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A model family: the object FAMILY of a module of deit_fast/zoo/families/."""

    architectures: Mapping[str, Architecture]
    """The entries by name, in the order in which the zoo lists them."""
    toys: Mapping[str, Architecture]
    """For each kind of model of the family: sizes so small that a test builds and trains the model in a second."""
    aliases: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Aliases from timm and from the family's reference: the entry, and the side of the images that the name
    implies."""
    published: Sequence[Published] = ()
    """Published rows of the entries. The zoo lists entries without published rows last."""
    weights_names: Mapping[str, str] = field(default_factory=dict)
    """Names of published weights that are neither the zoo's nor an alias with a tag: mmpretrain's, and timm's former
    ones. Each has the name of the published file."""
    position: int = 100
    """Position in the zoo's list of families; families with the same position are listed by name."""
    fixed: Mapping[str, object] = field(default_factory=dict)
    """Fields of a recipe's model section that the models ignore, or that have one possible value."""
    needs_layer_scale: bool = False
    """Whether model.layer_scale=null is refused."""
    has_attention: bool = True
    """Whether the blocks have self-attention; if not, optim.trainable="attention" and optim.split_qkv are refused."""
    layers_in_order: bool = True
    """Whether the models have timm's `group_matcher`; if not, optim.layer_decay is refused."""
    is_vit: bool = False
    """Whether the models are plain vision transformers, with the class token in every block."""
    class_slot: bool = False
    """Whether a vision transformer's position embedding has a slot for the class token."""
    transformers: Sequence[str] = ()
    """Names of transformers' model types that compute the same as the family's models."""
    eval_crop_ratio: float = 1.0
    """Crop ratio of the published evaluation: side of the central crop over the side of the resized image."""
