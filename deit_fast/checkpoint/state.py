"""The state of a run: everything that a checkpoint holds and a resumed run needs."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from deit_fast.models.build import ImageModel
from deit_fast.optim.base import RecipeOptimizer
from deit_fast.optim.compute_copy import write_copies
from deit_fast.optim.sharding import Shards, cut_weights

ANEW = -1  # a value of scored_step: figures of earlier evaluations do not count


@dataclass
class TrainState:
    """Everything that a resumed run needs. The position in the data follows from the step."""

    PLAIN: ClassVar = (
        "step", "skipped", "seconds", "timed_steps", "timed_seconds", "best_top1", "scores", "scored_step",
        "bad_images", "init", "image_backend",
    )  # fmt: skip

    model: ImageModel
    ema: ImageModel | None
    optimizer: RecipeOptimizer
    shards: Shards | None = None  # the tensors that the optimizer updates, if the model is sharded
    compute: ImageModel | None = None  # the model that the step computes with, if it is a copy of `model`
    copies: dict[Tensor, nn.Parameter] = field(default_factory=dict)  # the copy's own weights; no state dict holds them
    step: int = 0
    """Optimizer steps done."""
    skipped: int = 0
    """How many of these steps were skipped because of a non-finite gradient."""
    seconds: float = 0.0
    """Wall time of the steps, seconds, without evaluations and checkpoints."""
    timed_steps: int = 0
    """Steps that count for the speed: all but those of each process's first window."""
    timed_seconds: float = 0.0
    """Wall time of the steps that count for the speed, seconds."""
    best_top1: float = -1.0
    """Highest top-1 accuracy of an evaluation so far, percent; -1 before the first."""
    scores: dict[str, float] = field(default_factory=dict)
    """The last evaluation's figures by name: top1 and top5 in percent, loss in nats, ema_top1 and so on."""
    scored_step: int = 0
    """The step of the last evaluation; 0 before the first, ANEW if it used other validation images."""
    bad_images: dict[int, str] = field(default_factory=dict)
    """Images that could not be used, by index, with the reason in words."""
    init: dict[str, str] | None = None
    """The weights with which the run began, as `convert.pretrained.describe_origin` gives them; None for random
    weights."""

    image_backend: str = "dali"
    """The path that makes pixels on CPUs, "native" or "dali". A run keeps its path, because the paths differ in last
    bits."""

    def add_window(self, steps: int, seconds: float, is_first: bool) -> None:
        """Adds the wall time, `seconds`, of `steps` steps.

        The first window of a process includes its warm-up and does not count for the speed.
        """
        self.seconds += seconds
        if not is_first:
            self.timed_steps += steps
            self.timed_seconds += seconds

    @property
    def steps_per_second(self) -> float:
        """Optimizer steps per second of wall time; 0 before the first step.

        The processes' first windows, which include warm-up, count only if there are no other windows.
        """
        if self.timed_steps:
            return self.timed_steps / self.timed_seconds
        return self.step / self.seconds if self.seconds else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data as `save_checkpoint` takes them once a sharded model's tensors are whole."""
        return {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict() if self.shards is None else self.shards.join_state(self.optimizer),
            **{key: getattr(self, key) for key in self.PLAIN},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads a state that `state_dict` returned, of a run with the same recipe.

        If the model is sharded, the tensors are whole and lie in host memory: each process takes its rows.
        """
        self.load_weights(state["model"], state["ema"])
        optimizer = state["optimizer"]
        self.optimizer.load_state_dict(
            optimizer if self.shards is None else self.shards.cut_state(self.optimizer, optimizer)
        )
        # Checkpoints without scored_step were written after the evaluation of their step; today they are written before
        # it. Checkpoints without image_backend are from runs with DALI, the only backend then.
        known = {"scored_step": state["step"], "init": None, "image_backend": "dali", **state}
        for key in self.PLAIN:
            setattr(self, key, known[key])

    def load_weights(self, weights: dict[str, Tensor], averages: dict[str, Tensor] | None = None) -> None:
        """Loads weights of the model and, if it exists, of its moving average: whole tensors by timm's names.

        Each has its weight's shape [...]. Each process of a sharded model keeps its own rows alone.
        """
        for model, tensors in ((self.model, weights), (self.ema, averages)):
            if model is not None:
                assert tensors is not None
                model.load_state_dict(tensors if self.shards is None else cut_weights(tensors, model))
        write_copies(self.copies)
