"""The section `optim`: what all optimizers have in common. The fields of each one are in `optimizers/`."""

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Literal

from pydantic import Field, field_validator

from deit_fast.recipe.sections.base import DecayRate, NonNegative, Positive, Section
from deit_fast.runtime.discover import discover
from deit_fast.runtime.errors import brief, suggest


class Optim(Section):
    """The fields of every optimizer; a recipe holds one of the classes of `optimizers/`, by its name."""

    name: str = Field("lamb", validate_default=True)
    """The optimizer: a module of deit_fast.recipe.sections.optimizers, and of deit_fast.optim."""
    lr: Positive
    """Peak learning rate at run.global_batch, which it does not follow; the word auto scales the recipe's to the batch:
    by its square root for LAMB, in proportion for AdamW and SGD."""
    weight_decay: NonNegative = 0.05
    """Weight decay; not on norms, biases, LayerScale, class token and position embedding. sgd couples it."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Layer-wise decay: the learning rate shrinks by this factor per block from the head down; null is none. timm's:
    the last block has the factor once. deit3-jax's is one power off, with 1 in the last block."""
    trainable: Literal["all", "attention", "head"] = "all"
    """attention: only attention, position embedding and head (Three things everyone should know about ViTs). head: the
    classifier alone, on features that stay as they are (a linear probe)."""
    max_grad_norm: Positive | None = 1.0
    """Clip of the global gradient norm; null is none. apex FusedLAMB always clips to 1."""
    ema_decay: DecayRate | None = 0.99996
    """Decay per step of the exponential moving average of the weights; null is none."""

    @classmethod
    def kinds(cls) -> Mapping[str, type[Section]]:
        return _optimizers()

    @field_validator("name")
    @classmethod
    def has_its_own_class(cls, name: str) -> str:
        """Raises ValueError for a name that no optimizer has, and for this class in place of the name's own."""
        kinds = _optimizers()
        if name not in kinds:
            *others, last = map(repr, kinds)
            expected = f"{', '.join(others)} or {last}"
            raise ValueError(f"optim.name={brief(repr(name))}: expected {expected}{suggest(name, kinds)}")
        if kinds[name] is not cls:
            raise ValueError(f"{cls.__name__}(name={name!r}): expected {kinds[name].__name__}, the class of its own")
        return name


@cache
def _optimizers() -> dict[str, type[Optim]]:
    """The class of each optimizer, by its name: SECTION of each module of `optimizers/`."""
    found = discover("deit_fast.recipe.sections.optimizers", "SECTION", type)
    for name, section in found.items():
        if not issubclass(section, Optim) or section.model_fields["name"].default != name:
            raise TypeError(f"deit_fast.recipe.sections.optimizers.{name}.SECTION: expected a class of Optim whose "
                            f"field `name` is {name!r}")  # fmt: skip
    return found
