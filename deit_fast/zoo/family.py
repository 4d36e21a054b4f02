"""The types of the zoo's rows: a model family, its architectures, and what was published of them. No torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

_URL = "https://dl.fbaipublicfiles.com/deit/"


@dataclass(frozen=True)
class Architecture:
    """Sizes of a model. A family that has sizes of its own derives a class from this one."""

    embed_dim: int
    """D, the channels of a token."""
    depth: int
    """Blocks; CaiT's two class-attention blocks and PatchConvNet's aggregation layer come on top."""
    num_heads: int
    """Attention heads; 1 in ResMLP, which has no attention."""
    patch_size: int
    """Side of a patch, px."""
    family: str
    """The module of deit_fast/zoo/families/ that the entry stands in, and of deit_fast/models/ that builds it."""
    layer_scale: float | None = 1e-4
    """Initial value, where a recipe does not say otherwise."""
    parallel: int = 1
    """Attention branches, and then MLP branches, that are summed in a block (arXiv:2203.09795, section 3)."""
    distilled: bool = False
    """Whether there is a distillation token, with a head of its own; the model has timm's `set_distilled_training`."""
    class_tokens: bool = False
    """Whether each class has a token of its own (PatchConvNet)."""


@dataclass(frozen=True)
class Published:
    """One row of the zoo: an entry at a resolution, and one set of weights, if there is any."""

    name: str
    """The entry."""
    resolution: int
    """Side of the images, px."""
    params_m: float
    """Millions of parameters, with 1,000 classes."""
    gmacs: float
    """Billions of multiply-accumulates per image."""
    images_per_second: int | None = None
    """The authors' throughput, on their machine."""
    peak_memory_mb: int | None = None
    """The authors' peak memory, on their machine, MB."""
    top1: float | None = None
    """ImageNet validation accuracy, %."""
    top1_v2: float | None = None
    """ImageNet V2 accuracy, %."""
    training: str | None = None
    """What the weights were trained on and how; None: there are none."""
    weights: str | None = None
    """Address of the weights."""
    source: str | None = None
    """Where accuracy, speed, memory and address are from; None where the code alone is published."""
    tag: str | None = None
    """What tells the weights from others of the entry at this resolution, as a word; None: there are none."""

    @property
    def weights_name(self) -> str | None:
        """The weights in full, as `find_weights_row` takes them: ENTRY@PX:TAG. None: there are none."""
        return None if self.weights is None else f"{self.name}@{self.resolution}:{self.tag}"

    @property
    def weights_file(self) -> str | None:
        """The name of the file of weights, which no other row has."""
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

    `sizes` are millions of parameters and billions of multiply-accumulates, `speed` images per second and MB. Rows
    without an accuracy are timm's, but for DINO's, whose files the README lists.
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
    """For each kind of model that the family has, sizes that a test builds and trains in a second."""
    aliases: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """The names of timm and of the family's reference: the entry, and the side of the images that the name implies."""
    published: Sequence[Published] = ()
    """What was published of the entries. The zoo lists entries of which nothing was published after all others."""
    weights_names: Mapping[str, str] = field(default_factory=dict)
    """mmpretrain's names of published weights: the file that was converted."""
    position: int = 100
    """The zoo lists families in the order of their positions, and those of the same position by name."""
    fixed: Mapping[str, object] = field(default_factory=dict)
    """Fields of a recipe's model section of which the models know one value only, or of which they know nothing."""
    needs_layer_scale: bool = False
    """Whether model.layer_scale=null is refused."""
    has_attention: bool = True
    """Whether the blocks have self-attention: else optim.trainable="attention" and optim.split_qkv are refused."""
    layers_in_order: bool = True
    """Whether the models have timm's `group_matcher`: else optim.layer_decay is refused."""
    is_vit: bool = False
    """Whether the models are plain vision transformers, which have their class token in every block."""
    class_slot: bool = False
    """Whether a vision transformer's position embedding has a slot for the class token."""
    transformers: Sequence[str] = ()
    """The model types of transformers that compute what the family's models do."""
    eval_crop_ratio: float = 1.0
    """The published evaluation's: the share of the resized image's side that the central crop keeps."""
