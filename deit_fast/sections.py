"""The sections of a recipe: every value that decides what is learned, with its type, its default and its meaning.

Nothing in this module imports torch: a bad recipe costs one line and no waiting.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from deit_fast.errors import RecipeError
from deit_fast.zoo import check_fields, find_architecture, resolve_name

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
DecayRate = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Triple = tuple[float, float, float]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False,
                              use_attribute_docstrings=True)  # fmt: skip


class Model(Section):
    name: str
    """Architecture, an entry of deit_fast.zoo."""
    image_size: Count
    """Side of the square training and evaluation images, pixels."""
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
    """Dropout before the head."""
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
        return resolve_name(name)[0]

    @model_validator(mode="after")
    def check(self) -> Self:
        check_fields(self.name, dict(self))
        return self

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


class Data(Section):
    repeats: Count = 1
    """Repeated augmentation: differently augmented views of each image in a batch (3 in DeiT)."""
    layout: Literal["spread", "together"] = "spread"
    """Where an image's views go. spread: into different mixing groups, as the reference deals them out over its GPUs.
    together: next to each other, in one process, which then decodes the image once."""
    category: Literal["name", "kingdom", "phylum", "class", "order", "supercategory", "family", "genus"] = "name"
    """iNaturalist: the level of its taxonomy that is the class; name is the species."""
    eval_crop_ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Evaluation resizes the shorter side to image_size / ratio, then crops the centre. 1 for images of 32 px and less,
    which the reference leaves as they are."""
    mean: Triple = (0.485, 0.456, 0.406)
    """Channel means, of images in [0, 1]."""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """Channel standard deviations, of images in [0, 1]."""


class Augment(Section):
    crop: Literal["rrc", "src", "rrc_linear", "pad", "center"] = "rrc"
    """rrc: RandomResizedCrop. src: Simple Random Crop (resize the shorter side, 4 px reflect padding, random crop).
    rrc_linear: PASSL's, whose aspect ratio is uniform and whose area always fits. pad: as src with black padding, for
    images of 32 px and less. center: as in evaluation."""
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    """Of the resize, with antialiasing. random: one of the two per view. The policies' own rotations stay bicubic."""
    scale: tuple[Positive, Positive] = (0.08, 1.0)
    """Range of RandomResizedCrop's area, as a fraction of the image's."""
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Range of RandomResizedCrop's aspect ratio, width / height; drawn log-uniformly."""
    flip: Fraction = 0.5
    """Probability of the horizontal flip."""
    policy: Literal["three_augment", "rand_augment", "auto_augment", "none"] = "three_augment"
    """three_augment: one of greyscale, solarise, blur. rand_augment: timm's rand-mM-mstdS-inc1. auto_augment: the
    ImageNet policy of AutoAugment, timm's "original"."""
    color_jitter: Fraction = 0.3
    """Brightness, contrast and saturation factors are drawn from [1 - x, 1 + x], applied in random order."""
    rand_ops: Count = 2
    """RandAugment: operations drawn per image."""
    rand_magnitude: Annotated[float, Field(ge=0, le=10)] = 9.0
    """RandAugment: mean magnitude, of 10."""
    rand_std: NonNegative = 0.5
    """RandAugment: standard deviation of the magnitude."""
    erase: Fraction = 0.0
    """Random erasing: probability per view, on normalised pixels."""
    erase_mode: Literal["pixel", "rand", "const"] = "pixel"
    """What a box is filled with. pixel: normal noise per value. rand: one normal colour. const: zeros, the mean."""
    erase_count: Count = 1
    """Boxes per erased view, at most; timm draws 1 to this many, which share the area."""

    @model_validator(mode="after")
    def check(self) -> Self:
        for key, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if low > high:
                raise ValueError(f"augment.{key}={[low, high]}: expected low <= high")
        if self.scale[1] > 1:
            raise ValueError(f"augment.scale={list(self.scale)}: expected at most 1, the whole image")
        if self.policy in ("rand_augment", "auto_augment") and self.color_jitter:
            raise ValueError(
                f"augment.color_jitter={self.color_jitter}: expected 0 with augment.policy={self.policy!r} "
                "(the reference ignores it silently)"
            )
        return self


class Mix(Section):
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
        return self.prob > 0 and (self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None)

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.cutmix_minmax is not None and not 0 < self.cutmix_minmax[0] < self.cutmix_minmax[1]:
            raise ValueError(f"mix.cutmix_minmax={list(self.cutmix_minmax)}: expected 0 < low < high <= 1")
        return self


class Loss(Section):
    name: Literal["bce", "cross_entropy"] = "bce"
    """bce: binary cross-entropy of targets binarised after mixing. cross_entropy: soft-target cross-entropy."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing; cross_entropy only."""
    cosub: bool = False
    """Cosub (arXiv:2212.04884): two passes with their own stochastic depth, each also the other's teacher. bce only."""

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.name == "bce" and self.smoothing:
            raise ValueError(
                f"loss.smoothing={self.smoothing}: expected 0 with loss.name='bce', "
                "whose binarised targets would all become 1"
            )
        if self.cosub and self.name != "bce":
            raise ValueError(f"loss.cosub=true: expected loss.name='bce', got {self.name!r}")
        return self


class Distill(Section):
    kind: Literal["none", "soft", "hard"] = "none"
    """hard: cross-entropy of the distillation head with the teacher's decision. soft: their divergence."""
    teacher: str = "regnety_160"
    """The teacher, any model of timm; its weights are given where the run is started (--teacher)."""
    alpha: Fraction = 0.5
    """Weight of the distillation loss; the rest is the labels'."""
    tau: Positive = 1.0
    """Temperature of soft distillation."""


class Optim(Section):
    name: Literal["lamb", "adamw", "sgd"] = "lamb"
    """lamb: the arithmetic of apex FusedLAMB. adamw, sgd: torch's; sgd with Nesterov momentum and coupled decay."""
    lr: Positive
    """Peak learning rate at run.global_batch; it is not rescaled."""
    weight_decay: NonNegative = 0.05
    """Decoupled weight decay; not on norms, biases, LayerScale, class token and position embedding."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Layer-wise decay: the learning rate shrinks by this factor per block from the head down; null is none."""
    trainable: Literal["all", "attention"] = "all"
    """attention: only attention, position embedding and head (Three things everyone should know about ViTs)."""
    momentum: DecayRate = 0.9
    """sgd only."""
    split_qkv: bool = False
    """lamb: a trust ratio each for query, key and value, as deit3-jax has, where the fused weight has one."""
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
    warmup_prefix: bool = False
    """Whether the cosine's phase starts after the warmup (deit3-jax, mmpretrain) instead of with the run (timm)."""
    update: Literal["step", "epoch", "epoch_after_warmup"] = "step"
    """How often the rate changes. epoch: at the start of each (PASSL). epoch_after_warmup: mmpretrain's."""
    reference_epoch_steps: bool = False
    """Step once per epoch, one epoch late, as facebookresearch/deit does, instead of every step."""

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs={self.warmup_epochs:g}: expected less than schedule.epochs={self.epochs:g}"
            )
        if self.reference_epoch_steps and (self.update != "step" or self.warmup_prefix):
            raise ValueError(
                "schedule.reference_epoch_steps=true: expected schedule.update='step' and "
                "schedule.warmup_prefix=false, because it is a curve of its own"
            )
        return self


class Run(Section):
    global_batch: Count
    """Views per optimizer step, over all processes and accumulation steps."""
    accumulation: Count = 1
    """Gradient accumulation: forward-backward passes per optimizer step."""
    seed: Seed = 0
    """Seed of initialisation, order, augmentation, mixing and dropout."""
    init_seed: Seed | None = None
    """Of initialisation alone; null: run.seed. Likewise the three below."""
    order_seed: Seed | None = None
    """Of the order of the images."""
    mix_seed: Seed | None = None
    """Of mixup and CutMix."""
    dropout_seed: Seed | None = None
    """Of dropout and stochastic depth."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 autocast on GPUs and CPUs that have it in hardware, else fp32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of the training step. auto: on GPUs, and where the compiler fails the run goes on without it."""
    reduce_dtype: Literal["fp32", "bf16"] = "fp32"
    """Type in which gradients are averaged over processes. bf16: half the traffic, rounded to 8 bits before the sum."""
    grad_checkpointing: bool = False
    """Recompute each block's activations in the backward pass: less memory, about a third more time."""
    log_every: Count = 50
    """Steps between lines of metrics.jsonl."""
    eval_every: Count = 1
    """Epochs between evaluations; the last step always evaluates."""
    checkpoint_every: Count | None = 1000
    """Steps between checkpoints, besides the ones after evaluations and at a signal; null is none."""
    nonfinite_limit: Count = 20
    """Steps in a row with a non-finite loss or gradient, each skipped, before the run stops."""
    cache_gib: NonNegative = 0.0
    """Memory per process for encoded training images: each that fits is read from its disk once. 0 is none."""
    profile: bool = False
    """Profile some steps after the warm-up: a trace and a one-page summary in the run folder's profile/."""

    def seed_of(self, use: Literal["init", "order", "mix", "dropout"]) -> int:
        """The seed of one use: its own, or the run's."""
        own: int | None = getattr(self, f"{use}_seed")
        return self.seed if own is None else own
