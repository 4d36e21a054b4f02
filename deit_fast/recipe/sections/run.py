"""The section `run`: batch, seeds, precision, processes, and what is written when."""

from typing import Literal

from deit_fast.recipe.sections.base import Count, Fraction, NonNegative, Positive, Section, Seed


class Run(Section):
    """Batch, seeds, precision, processes, and what is written when."""

    global_batch: Count
    """Views per optimizer step, over all processes and accumulation steps."""
    accumulation: Count | Literal["auto"] = "auto"
    """Gradient accumulation: forward-backward passes per optimizer step. auto: as few as fit into memory, found by a
    trial at the start on GPUs (no GPU has tried it yet) and from the free memory on CPUs; a run that goes on keeps its
    number."""
    seed: Seed = 0
    """Seed of initialisation, order, augmentation, mixing and dropout."""
    init_seed: Seed | None = None
    """Seed of initialisation; null: run.seed."""
    order_seed: Seed | None = None
    """Seed of the order of the images; null: run.seed."""
    mix_seed: Seed | None = None
    """Seed of mixup and CutMix; null: run.seed."""
    dropout_seed: Seed | None = None
    """Seed of dropout and stochastic depth; null: run.seed."""
    start: Literal["scratch", "weights"] = "scratch"
    """weights: finetuning, whose learning rates are too small for random weights: a run is not started without --init,
    unless it says --init none."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU where torch sees one, else the CPU. cuda: no other than a GPU."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 autocast on GPUs and CPUs that have it in hardware, else fp32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of the training step. auto: on GPUs, and where the compiler fails the run goes on without it."""
    compute_copy: bool = False
    """Compute with a bf16 copy of the matrices, which LAMB writes beside the fp32 weights, where autocast would round
    them at every pass. LAMB and run.accumulation=1; several processes have to average gradients in bf16. By
    count 2 % fewer bytes beside the products for ViT-B, 10 % for H; no GPU has measured it yet."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """ddp: every process has all weights. fsdp: each has a share of them, of their moments and of their average, for
    models that are too large: FSDP2. The results are the same; a run may change between the two when it goes on."""
    reduce_dtype: Literal["fp32", "bf16"] = "fp32"
    """Type in which gradients are averaged over processes. bf16: half the traffic, rounded to 8 bits before the sum."""
    grad_checkpointing: bool | Literal["selective"] = False
    """Recompute each block's activations in the backward pass: a tenth of them is kept, for about a third more time.
    selective: keep the results of matrix products and attention and recompute what is cheap, as norms and GELU: about
    half is kept, for 14 %. The times are by the bytes and FLOPs counted for ViT-B; no GPU has measured them yet."""
    log_every: Count = 50
    """Steps between lines of metrics.jsonl."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Where the figures go beside metrics.jsonl: tensorboard, wandb (extra wandb), mlflow (extra mlflow)."""
    eval_every: Count = 1
    """Epochs between evaluations; the last step always evaluates."""
    checkpoint_every: Count | None = 1000
    """Steps between checkpoints, besides the ones after evaluations and at a signal; null is none."""
    keep_checkpoints: Count = 2
    """Checkpoints that are kept besides the best, the last among them."""
    nonfinite_limit: Count = 20
    """Steps in a row with a non-finite loss or gradient, each skipped, before the run stops."""
    hang_timeout: Positive = 600
    """Seconds without a step or a batch of evaluation after which a process counts as hanging and ends itself; a
    process's first step and first evaluation, which may compile, have half an hour more."""
    cache_gib: NonNegative = 0.0
    """Memory, GiB per process, for encoded training images: each that fits is read from its disk once. 0 is none."""
    hw_decoder_load: Fraction = 0.65
    """Share of training's JPEGs that a GPU's decoding engines get, as DALI's default; the others' pixels are rounded
    differently. CPUs ignore it."""
    image_backend: Literal["auto", "native", "dali"] = "auto"
    """What makes views of decoded images on CPUs: this package's C code, or DALI's graph, whose values differ by a few
    of 255. auto: native where the package was built with it and it has the policy's operations; a run that goes on
    keeps to what its checkpoint was trained with. GPUs have DALI's graph alone."""
    profile: bool = False
    """Profile some steps after the warm-up: a trace and a one-page summary in the run folder's profile/."""

    @property
    def passes(self) -> int:
        """Passes per optimizer step; with accumulation="auto" one, until a run has found how many fit."""
        return 1 if self.accumulation == "auto" else self.accumulation

    def seed_of(self, use: Literal["init", "order", "mix", "dropout"]) -> int:
        """The seed of one use: its own, or the run's."""
        own: int | None = getattr(self, f"{use}_seed")
        return self.seed if own is None else own
