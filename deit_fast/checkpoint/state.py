"""The state of a run: all that a checkpoint holds and a resumed run needs."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from deit_fast.models.build import ImageModel
from deit_fast.optim.base import RecipeOptimizer
from deit_fast.optim.compute_copy import write_copies
from deit_fast.optim.sharding import Shards, cut_weights

ANEW = -1  # a scored_step: whatever was noted of earlier evaluations does not count


@dataclass
class TrainState:
    """All that a resumed run needs; the position in the data follows from the step."""

    PLAIN: ClassVar = (
        "step", "skipped", "seconds", "timed_steps", "timed_seconds", "best_top1", "scores", "scored_step",
        "bad_images", "init", "image_backend",
    )  # fmt: skip

    model: ImageModel
    ema: ImageModel | None
    optimizer: RecipeOptimizer
    shards: Shards | None = None  # what the optimizer moves, where the model is sharded
    compute: ImageModel | None = None  # the model that the step computes with, where it is a copy of `model`
    copies: dict[Tensor, nn.Parameter] = field(default_factory=dict)  # its own weights, of no state dict
    step: int = 0
    """Optimizer steps done."""
    skipped: int = 0
    """Those of them that a non-finite gradient skipped."""
    seconds: float = 0.0
    """Wall time of the steps, without evaluations and checkpoints."""
    timed_steps: int = 0
    """Steps that count for speed: those after each process's first window."""
    timed_seconds: float = 0.0
    """Wall time of these."""
    best_top1: float = -1.0
    """Highest top-1 accuracy of an evaluation so far, percent; -1 before the first."""
    scores: dict[str, float] = field(default_factory=dict)
    """The last evaluation's figures by name: top1 and top5 in percent, loss in nats, ema_top1 and so on."""
    scored_step: int = 0
    """The step of that evaluation; 0 before the first, ANEW where it was of other validation images."""
    bad_images: dict[int, str] = field(default_factory=dict)
    """Images that could not be used, by index, and why, in words."""
    init: dict[str, str] | None = None
    """Which weights the run began with, as `convert.pretrained.describe_origin` has it; None for random ones."""

    image_backend: str = "dali"
    """What makes the pixels on CPUs, "native" or "dali": their last bits are what the weights were trained with."""

    def add_window(self, steps: int, seconds: float, is_first: bool) -> None:
        """Adds the wall time, `seconds`, of `steps` steps.

        A process's first window, with its warm-up, does not count for speed.
        """
        self.seconds += seconds
        if not is_first:
            self.timed_steps += steps
            self.timed_seconds += seconds

    @property
    def steps_per_second(self) -> float:
        """Optimizer steps per second of wall time; 0 before the first step.

        The first windows of the run's processes, with their warm-up, count only where there are no others.
        """
        if self.timed_steps:
            return self.timed_steps / self.timed_seconds
        return self.step / self.seconds if self.seconds else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data, as `save_checkpoint` takes them once the tensors of a sharded model are whole."""
        return {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict() if self.shards is None else self.shards.join_state(self.optimizer),
            **{key: getattr(self, key) for key in self.PLAIN},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave, of a run of the same recipe.

        Where the model is sharded, the tensors are whole and lie in host memory: each process takes its rows.
        """
        self.load_weights(state["model"], state["ema"])
        optimizer = state["optimizer"]
        self.optimizer.load_state_dict(
            optimizer if self.shards is None else self.shards.cut_state(self.optimizer, optimizer)
        )
        # A checkpoint without scored_step was written after its step's evaluation, today's are before; one without
        # image_backend knew no other than DALI.
        known = {"scored_step": state["step"], "init": None, "image_backend": "dali", **state}
        for key in self.PLAIN:
            setattr(self, key, known[key])

    def load_weights(self, weights: dict[str, Tensor], averages: dict[str, Tensor] | None = None) -> None:
        """Takes up weights of the model and, where there is one, of its moving average: whole tensors by timm's names.

        Each has its weight's shape [...]; of a sharded model each process keeps its rows alone.
        """
        for model, tensors in ((self.model, weights), (self.ema, averages)):
            if model is not None:
                assert tensors is not None
                model.load_state_dict(tensors if self.shards is None else cut_weights(tensors, model))
        write_copies(self.copies)
