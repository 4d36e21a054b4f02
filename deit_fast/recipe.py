"""The schema of a recipe: what is learned, as typed, frozen, validated data. Where and on how many is not in here.

Nothing in this module imports torch: a bad recipe costs one line and no waiting.
"""

import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from deit_fast.errors import RecipeError, one_line, suggest
from deit_fast.zoo import find_architecture

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
DecayRate = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Triple = tuple[float, float, float]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False,
                              use_attribute_docstrings=True)  # fmt: skip


class Model(Section):
    name: str
    """Architecture, an entry of deit_fast.zoo."""
    image_size: Count
    """Side of the square training and evaluation images, pixels."""
    num_classes: Count = 1000
    """Number of classes; has to equal the data's."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth rate, the same in every block (DeiT III; timm's default is linear in depth)."""
    drop_path_mode: Literal["auto", "subset", "bernoulli"] = "auto"
    """subset: branches run on the kept share of a batch only. bernoulli: the reference's. auto: subset from 0.1 on."""
    layer_scale: Positive | None = 1e-4
    """Initial value of LayerScale; null leaves it out."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the head."""


class Data(Section):
    repeats: Count = 1
    """Repeated augmentation: differently augmented views of each image in a batch (3 in DeiT)."""
    eval_crop_ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Evaluation resizes the shorter side to image_size / ratio, then crops the centre."""
    mean: Triple = (0.485, 0.456, 0.406)
    """Channel means, of images in [0, 1]."""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """Channel standard deviations, of images in [0, 1]."""


class Augment(Section):
    crop: Literal["rrc", "src"] = "rrc"
    """rrc: RandomResizedCrop. src: Simple Random Crop (resize the shorter side, 4 px reflect padding, random crop)."""
    scale: tuple[Positive, Positive] = (0.08, 1.0)
    """Range of RandomResizedCrop's area, as a fraction of the image's."""
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Range of RandomResizedCrop's aspect ratio, width / height; drawn log-uniformly."""
    flip: Fraction = 0.5
    """Probability of the horizontal flip."""
    policy: Literal["three_augment", "rand_augment", "none"] = "three_augment"
    """three_augment: one of greyscale, solarise, blur. rand_augment: timm's rand-mM-mstdS-inc1."""
    color_jitter: Fraction = 0.3
    """Brightness, contrast and saturation factors are drawn from [1 - x, 1 + x], applied in random order."""
    rand_ops: Count = 2
    """RandAugment: operations drawn per image."""
    rand_magnitude: Annotated[float, Field(ge=0, le=10)] = 9.0
    """RandAugment: mean magnitude, of 10."""
    rand_std: NonNegative = 0.5
    """RandAugment: standard deviation of the magnitude."""

    @model_validator(mode="after")
    def check(self) -> Self:
        for key, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if low > high:
                raise ValueError(f"augment.{key}={[low, high]}: expected low <= high")
        if self.scale[1] > 1:
            raise ValueError(f"augment.scale={list(self.scale)}: expected at most 1, the whole image")
        if self.policy == "rand_augment" and self.color_jitter:
            raise ValueError(
                f"augment.color_jitter={self.color_jitter}: expected 0 with augment.policy='rand_augment' "
                "(the reference ignores it silently)"
            )
        return self


class Mix(Section):
    mixup: NonNegative = 0.8
    """Mixup's Beta(alpha, alpha); 0 is off."""
    cutmix: NonNegative = 1.0
    """CutMix's Beta(alpha, alpha); 0 is off."""
    prob: Fraction = 1.0
    """Probability that a group is mixed at all."""
    switch_prob: Fraction = 0.5
    """Probability of CutMix when both are on."""
    group: Annotated[int, Field(ge=2, multiple_of=2)] = 256
    """Images that share one draw of operation, lambda and box: the reference's batch per GPU."""

    @property
    def active(self) -> bool:
        return self.prob > 0 and (self.mixup > 0 or self.cutmix > 0)


class Loss(Section):
    name: Literal["bce", "cross_entropy"] = "bce"
    """bce: binary cross-entropy of targets binarised after mixing. cross_entropy: soft-target cross-entropy."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing; cross_entropy only."""

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.name == "bce" and self.smoothing:
            raise ValueError(
                f"loss.smoothing={self.smoothing}: expected 0 with loss.name='bce', "
                "whose binarised targets would all become 1"
            )
        return self


class Optim(Section):
    name: Literal["lamb", "adamw"] = "lamb"
    """lamb: the arithmetic of apex FusedLAMB. adamw: torch.optim.AdamW."""
    lr: Positive
    """Peak learning rate at run.global_batch; it is not rescaled."""
    weight_decay: NonNegative = 0.05
    """Decoupled weight decay; not on norms, biases, LayerScale, class token and position embedding."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: Positive = 1e-8
    """Added to the root of the second moment."""
    max_grad_norm: Positive | None = 1.0
    """Clip of the global gradient norm; null is none. apex FusedLAMB always clips to 1."""
    ema_decay: DecayRate | None = 0.99996
    """Decay per step of the exponential moving average of the weights; null is none."""


class Schedule(Section):
    epochs: Positive = 800
    """Length of the run in epochs; fractions are allowed."""
    warmup_epochs: NonNegative = 5
    """Linear warmup from warmup_lr to lr."""
    warmup_lr: NonNegative = 1e-6
    """Learning rate of the first step."""
    min_lr: NonNegative = 1e-5
    """Learning rate at the end of the cosine."""
    reference_epoch_steps: bool = False
    """Step once per epoch, one epoch late, as facebookresearch/deit does, instead of every step."""

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs={self.warmup_epochs:g}: expected less than schedule.epochs={self.epochs:g}"
            )
        return self


class Run(Section):
    global_batch: Count
    """Views per optimizer step, over all processes and accumulation steps."""
    accumulation: Count = 1
    """Gradient accumulation: forward-backward passes per optimizer step."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of initialisation, order, augmentation, mixing and dropout."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 autocast on GPUs and CPUs that have it in hardware, else fp32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of the training step. auto: on GPUs."""
    log_every: Count = 50
    """Steps between lines of metrics.jsonl."""
    eval_every: Count = 1
    """Epochs between evaluations; the last step always evaluates."""
    checkpoint_every: Count | None = 1000
    """Steps between checkpoints, besides the ones after evaluations and at a signal; null is none."""
    nonfinite_limit: Count = 20
    """Steps in a row with a non-finite loss or gradient, each skipped, before the run stops."""
    profile: bool = False
    """Profile some steps after the warm-up: a trace and a one-page summary in the run folder's profile/."""


class Recipe(Section):
    name: str
    """Name in the recipe table, or of the file it came from."""
    description: str = ""
    """Source, what differs from it, cost and published result."""
    model: Model
    data: Data = Data()
    augment: Augment = Augment()
    mix: Mix = Mix()
    loss: Loss = Loss()
    optim: Optim
    schedule: Schedule = Schedule()
    run: Run

    @model_validator(mode="after")
    def check(self) -> Self:
        model, run = self.model, self.run
        patch_size = find_architecture(model.name).patch_size
        if model.image_size < patch_size:
            raise ValueError(
                f"model.image_size={model.image_size}: expected at least the patch size of {model.name}, {patch_size}"
            )
        if self.schedule.min_lr > self.optim.lr:
            raise ValueError(f"schedule.min_lr={self.schedule.min_lr:g}: expected at most optim.lr={self.optim.lr:g}")
        if run.global_batch % run.accumulation:
            raise ValueError(
                f"run.accumulation={run.accumulation}: expected a divisor of run.global_batch={run.global_batch}"
            )
        if self.mix.active and (run.global_batch // run.accumulation) % 2:
            raise ValueError(
                f"run.global_batch={run.global_batch}: expected an even batch per pass, which mixup and cutmix pair up"
            )
        return self

    def override(self, words: Iterable[str]) -> "Recipe":
        """A copy with `section.key=value` words applied; values are JSON, bare words or comma-separated tuples.

        Raises RecipeError for an unknown key, a wrong type or choice, or a combination that cannot work.
        """
        content = self.model_dump(mode="json")
        for word in words:
            path, equals, text = word.partition("=")
            section, dot, key = path.partition(".")
            if not (equals and dot and key):
                raise RecipeError(f"{word!r}: expected section.key=value, for example optim.lr=1e-3")
            field = _section_fields(section).get(key)  # an unknown key is refused with the rest
            content[section][key] = _value(text, str_only=field is not None and field.annotation is str)
        return parse_recipe(content)


SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in Recipe.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}


def parse_recipe(content: dict[str, Any], source: str = "") -> Recipe:
    """A Recipe from plain data. Raises RecipeError with the first thing wrong; `source` names the file, if any."""
    try:
        return Recipe.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise RecipeError((f"{source}: " if source else "") + _explain(error.errors()[0])) from None


def load_recipe_file(path: Path) -> Recipe:
    """A recipe from a .toml or .json file, such as the recipe.json of a run folder. Raises RecipeError."""
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: expected a readable .toml or .json recipe ({one_line(error)})") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: expected a table of sections, got {type(content).__name__}")
    return parse_recipe({"name": path.stem, **content}, source=str(path))


def _section_fields(section: str) -> dict[str, Any]:
    if section not in SECTIONS:
        raise RecipeError(
            f"{section}: no such section; expected one of {', '.join(SECTIONS)}{suggest(section, SECTIONS)}"
        )
    return SECTIONS[section].model_fields


def _value(text: str, str_only: bool) -> Any:
    """JSON where it parses, a list for comma-separated JSON, else the word itself."""
    if str_only:
        return text
    for candidate in (text, f"[{text}]") if "," in text else (text,):
        try:
            return json.loads(candidate, parse_constant=str)
        except json.JSONDecodeError:
            continue
    return text


def _explain(error: ErrorDetails) -> str:
    """One pydantic error as `key=value: expected ...`."""
    if error["type"] == "value_error":  # our own cross-field messages name their key already
        return str(error["ctx"]["error"])
    names = [str(part) for part in error["loc"]]
    key = ".".join(name for name in names if not name.startswith(("float", "int", "constrained", "tuple")))
    if error["type"] == "extra_forbidden":
        fields = _section_fields(names[0]) if len(names) > 1 else Recipe.model_fields
        return f"{key}: no such key; expected one of {', '.join(fields)}{suggest(names[-1], fields)}"
    if error["type"] == "missing":
        return f"{key}: missing, and it has no default"
    expected = one_line(error["msg"]).removeprefix("Input should be ").removeprefix("a valid ")
    field = SECTIONS[names[0]].model_fields[names[1]] if len(names) > 1 and names[0] in SECTIONS else None
    nullable = field is not None and type(None) in get_args(field.annotation)
    return f"{key}={error['input']!r}: expected {expected}{' or null' if nullable else ''}"
