"""The sections `model`, `loss` and `distill`: the network and what it is trained to do."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, field_validator

from deit_fast.recipe.sections.base import Count, Fraction, Positive, Section, When
from deit_fast.runtime.errors import RecipeError
from deit_fast.zoo import find_architecture, resolve_name
from deit_fast.zoo.fields import check_fields

_DISTILLING = When("kind", ("soft", "hard"))


class Model(Section):
    """The network, its input and its initial weights."""

    name: str
    """Architecture, an entry of deit_fast.zoo."""
    image_size: Count
    """Side of the square training and evaluation images, px."""
    num_classes: Count | None = 1000
    """Number of classes; has to equal the data's. null: takes the data's."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth rate, of the last block or of all."""
    drop_path_decay: Literal["constant", "linear"] = "constant"
    """constant: the same rate in every block (DeiT III). linear: from 0 in the first to the rate in the last (DeiT)."""
    drop_path_mode: Literal["auto", "subset", "bernoulli"] = "auto"
    """subset: branches run on the kept share of a batch only. bernoulli: the reference's. auto: subset from 0.1 on."""
    layer_scale: Positive | Literal["auto"] | None = "auto"
    """Initial value of LayerScale; null leaves it out. auto: the architecture's own, 1e-4 in DeiT III."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout rate before the head."""
    position: Literal["learned", "sincos"] = "learned"
    """Position embedding; sincos is the fixed two-dimensional one."""
    pool: Literal["token", "avg"] = "token"
    """What the head sees: the class token, or the mean of the patches, in a model that then has no class token."""
    stem: Literal["patch", "hmlp"] = "patch"
    """Patch embedding. patch: one linear projection. hmlp: the three layers of Three things, 16 x 16 patches only."""
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    """gelu: exact. gelu_tanh: its tanh approximation, flax's default, with which deit3-jax trained."""
    init_std: Positive = 0.02
    """Standard deviation of the truncated normal that initialises linear layers, tokens and positions."""
    train_mode: bool = True
    """false: finetune in evaluation mode, without dropout and stochastic depth (the reference's --no-train-mode)."""

    @field_validator("name")
    @classmethod
    def resolve(cls, name: str) -> str:
        """The zoo's entry that the name stands for. Raises RecipeError for a name that is none."""
        return resolve_name(name)[0]

    def problems(self) -> Iterator[str]:
        try:
            check_fields(self.name, dict(self))
        except RecipeError as error:
            yield str(error)

    @property
    def classes(self) -> int:
        """num_classes, where it is known. Raises RecipeError where it is the data's and no data is at hand."""
        if self.num_classes is None:
            raise RecipeError("model.num_classes=null: expected a number here, where there is no data to count")
        return self.num_classes

    @property
    def initial_layer_scale(self) -> float | None:
        """layer_scale, with "auto" resolved."""
        return find_architecture(self.name).layer_scale if self.layer_scale == "auto" else self.layer_scale


class Loss(Section):
    """The loss of the labels."""

    name: Literal["bce", "cross_entropy"] = "bce"
    """bce: binary cross-entropy of targets binarised after mixing. cross_entropy: soft-target cross-entropy."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing; cross_entropy only."""
    cosub: bool = False
    """Cosub (arXiv:2212.04884): two passes with their own stochastic depth, each also the other's teacher. bce only:
    the reference, where --bce-loss is left out, keeps the soft targets of mixing instead of binarising them."""

    def problems(self) -> Iterator[str]:
        if self.name == "bce" and self.smoothing:
            yield (
                f"loss.smoothing={self.smoothing}: expected 0 with loss.name='bce', "
                "whose binarised targets would all become 1"
            )
        if self.cosub and self.name != "bce":
            yield f"loss.cosub=true: expected loss.name='bce', got {self.name!r}"


class Distill(Section):
    """Distillation from a teacher (arXiv:2012.12877)."""

    kind: Literal["none", "soft", "hard"] = "none"
    """hard: cross-entropy of the distillation head with the teacher's decision. soft: their divergence. Both have
    teacher and alpha, soft has tau."""
    teacher: Annotated[str, _DISTILLING] = "regnety_160"
    """The teacher, any model of timm; its weights are given where the run is started (--teacher)."""
    alpha: Annotated[Fraction, _DISTILLING] = 0.5
    """Weight of the distillation loss; the rest is the labels'."""
    tau: Annotated[Positive, When("kind", ("soft",))] = 1.0
    """Temperature of soft distillation."""
