"""Actions at intervals: a line of metrics, an evaluation, a checkpoint; one class for each."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from deit_fast.checkpoint.resume import kept_steps
from deit_fast.checkpoint.save import Saver
from deit_fast.checkpoint.state import ANEW, TrainState
from deit_fast.data.loader.batches import EvalLoader
from deit_fast.infer.evaluate import build_eval_loader, evaluate
from deit_fast.infer.pages.on_track import standing
from deit_fast.infer.pages.report import REPORT, write_run_page
from deit_fast.infer.pages.run_folder import read_run
from deit_fast.optim.sharding import gather
from deit_fast.runtime.errors import RunError, StorageError
from deit_fast.runtime.hardware import peak_memory
from deit_fast.runtime.log_sinks.json_lines import read_metrics
from deit_fast.runtime.metrics_log import MetricsLog, plot_curves, told
from deit_fast.runtime.stopping import StopSignal
from deit_fast.runtime.watchdog import START_SECONDS, Watchdog
from deit_fast.training.job import Job
from deit_fast.training.step import Meter, TrainStep

_NO_SCORES = ("kind", "step")  # keys of a record in metrics.jsonl that are no scores


@dataclass
class Window:
    """The steps since the last line of metrics, and their wall time."""

    start: float = field(default_factory=time.perf_counter)
    """Time of its beginning, seconds of time.perf_counter."""
    steps: int = 0
    """Number of optimizer steps."""
    waited: float = 0.0
    """Seconds spent waiting for batches."""
    is_first: bool = True
    """Whether it is the process's first window, which includes the warm-up."""


class TrainMetrics:
    """The "train" lines of the log. Each line covers the steps since the line before."""

    def __init__(self, job: Job, state: TrainState, log: MetricsLog) -> None:
        self._job, self._state, self._log = job, state, log
        self.window = Window()

    def record(self, meter: Meter, lr: float) -> None:
        """Reads the sums on the device since the last line, over all processes, and begins a new window.

        lr: the learning rate of the last step. The line has loss and grad_norm as means over the steps that were not
        skipped, images_per_second, data_wait as a fraction of the time, and peak_memory_gib in GiB.
        """
        job, state, window = self._job, self._state, self.window
        loss, grad_norm, counted, skipped = (job.world.sum(meter.sums.clone()) / job.world.size).tolist()
        meter.sums.zero_()
        seconds = time.perf_counter() - window.start
        state.add_window(window.steps, seconds, is_first=window.is_first)
        state.skipped += round(skipped)
        if skipped:
            limit = f"run.nonfinite_limit={job.recipe.run.nonfinite_limit} in a row end the run"
            self._log.say(
                f"step {state.step}: {round(skipped)} of the last {window.steps} steps skipped, "
                f"loss or gradient was not finite ({limit})"
            )
        values = {
            "epoch": state.step / job.steps_per_epoch,
            "loss": loss / counted if counted else math.nan,
            "lr": lr,
            "grad_norm": grad_norm / counted if counted else math.nan,
            "images_per_second": window.steps * job.recipe.run.global_batch / seconds,
            "data_wait": window.waited / seconds,
            "peak_memory_gib": peak_memory(job.world.device),
            "skipped": float(state.skipped),
        }
        self._log.record("train", state.step, values)
        self.window = Window(is_first=False)

    def restart(self) -> None:
        """Begins a new window, so that the time since the last line does not count as training."""
        self.window = Window(is_first=self.window.is_first)


def draw_curves(job: Job) -> None:
    """Writes curves.png and report.html to the run folder, in the main process; neither on a full disk."""
    if job.world.is_main:
        with told("curves.png"):
            plot_curves(job.out, f"{job.recipe.name}, {job.recipe.model.image_size} px")
        with told(REPORT):
            write_run_page(read_run(job.out))


def publish_ending(job: Job) -> list[str]:
    """Uploads the files of a diverged run to its object store, in the main process; returns lines about failures."""
    try:
        if job.store is not None and job.world.is_main:
            job.store.push()
    except RunError as error:
        return [f"the end of the run is in {job.out} only: {error}"]
    return []


class Evaluation:
    """Scores of the model and of its moving average, if there are validation data."""

    def __init__(
        self, job: Job, state: TrainState, step: TrainStep, log: MetricsLog, watchdog: Watchdog, stop: StopSignal
    ) -> None:
        self._job, self._state, self._step, self._log, self._watchdog = job, state, step, log, watchdog
        self._stop = stop
        self._loader: EvalLoader | None = None
        self._predictors: dict[str, Callable[[Tensor], Tensor]] = {}

    def run(self) -> None:
        """Evaluates the model and, if there is one, its moving average; gives the scores to the state and the log.

        Scores have the names of the metrics' figures; those of the average begin with "ema_". Raises StoppedError, in
        every process, where one of them received a signal to stop.
        """
        job, state, watchdog = self._job, self._state, self._watchdog
        if job.val_source is None:
            return
        start = time.perf_counter()
        watchdog.beat("evaluation", START_SECONDS if self._loader is None else 0.0)
        if self._loader is None:
            self._loader = build_eval_loader(job.recipe, job.val_source, job.world, self._state.image_backend)
            self._predictors = {"": self._step.predictor(state.model)}
            if state.ema is not None:
                self._predictors["ema_"] = self._step.predictor(state.ema)
        scores: dict[str, float] = {}
        state.model.eval()
        for prefix, predict in self._predictors.items():
            result = evaluate(predict, self._loader, job.world, self._watch)
            scores |= {f"{prefix}{key}": value for key, value in result.values.items()}
            if lost := result.values.get("nonfinite"):
                what = f"step {state.step}: the logits of {lost:.0f} of {result.images} validation images"
                self._log.say(f"{what} are not finite{', of the moving average' if prefix else ''}")
        state.scores, state.scored_step = scores, state.step
        self._log.record("eval", state.step, scores)
        self._log.paused(time.perf_counter() - start)
        if found := standing(job.recipe, state.step / job.steps_per_epoch, scores.get("top1")):
            self._log.say(str(found))
        if state.step < job.total_steps:  # the end of a run draws them with its result
            draw_curves(job)

    def _watch(self) -> bool:
        self._watchdog.beat("evaluation")
        return self._stop.received

    def catch_up(self) -> None:
        """Gets the scores of the step from which the run resumes, if its checkpoint was written before its evaluation.

        If metrics.jsonl has the scores, because the run ended after the evaluation, they are read; else the step is
        evaluated now.
        """
        job, state = self._job, self._state
        if state.scored_step == state.step or job.val_source is None:
            return
        found = None
        if job.world.is_main and state.scored_step != ANEW:
            records = read_metrics(job.out / "metrics.jsonl")
            found = next((each for each in records if (each["kind"], each["step"]) == ("eval", state.step)), None)
        found = job.world.broadcast(found)
        if found is None:
            self.run()
            return
        state.scores = {key: math.nan if each is None else each for key, each in found.items() if key not in _NO_SCORES}
        state.scored_step = state.step

    def close(self) -> None:
        """Closes the loader, if there was an evaluation."""
        if self._loader is not None:
            self._loader.close()


class Checkpoints:
    """The run's checkpoints: the main process writes them, other processes provide their rows of a sharded model."""

    def __init__(self, job: Job, state: TrainState, log: MetricsLog) -> None:
        self._job, self._state, self._log = job, state, log
        self._saver: Saver | None = None
        if job.world.is_main:
            folder, keep = job.out / "checkpoints", job.recipe.run.keep_checkpoints
            publish = job.store.push if job.store is not None else None
            self._saver = Saver(folder, keep, state, job.world.device, kept_steps(folder, state.step), publish)

    def save(self) -> None:
        """Starts to write a checkpoint of the state's step, before the evaluation, which may fail."""
        job, state = self._job, self._state
        if self._saver is not None:
            beside: dict[str, Any] = {"recipe": job.recipe.model_dump(mode="json"), "classes": job.source.classes}
            beside |= {"dtype": str(job.dtype), "processes": job.world.size}
            if job.world.device.type == "cpu":
                beside["threads"] = torch.get_num_threads()
            beside["data"] = {split: each.as_plain() for split, each in job.identities.items()}
            self._say(self._saver.save(beside))
        elif state.shards is not None:
            gather(state.state_dict())

    def mark_best(self) -> None:
        """Makes the checkpoint of the state's step the best one, if the state's scores are the best so far."""
        if self._saver is not None and self._state.scored_step == self._state.step and "top1" in self._state.scores:
            self._saver.mark_best(self._state.scores["top1"])

    def report(self) -> None:
        """Prints the failures of the last save, if it has ended, and lets its thread go."""
        if self._saver is not None:
            self._say(self._saver.report())

    def settle(self) -> None:
        """Waits for the last save. Raises StorageError, in every process, where it failed."""
        failures = self._job.world.broadcast(self._saver.finish() if self._saver is not None else [])
        if failures:
            raise StorageError(failures[0])

    def close(self) -> None:
        """Waits for the last save, prints its failures, and ends the writing thread."""
        if self._saver is not None:
            self._say(self._saver.finish())

    def _say(self, lines: Iterable[str]) -> None:
        self._log.say(*lines)
