"""One process of a training run: state, loader, log, evaluation and checkpoints around the step."""

import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from deit_fast.checkpoint.format import check_same_recipe, load_checkpoint, restore_link
from deit_fast.checkpoint.resume import agree_on_checkpoint, kept_steps
from deit_fast.checkpoint.save import Saver, step_path
from deit_fast.checkpoint.store import RunStore, pull_everywhere
from deit_fast.convert.detect import load_weights
from deit_fast.convert.fit import build_initialised, format_changes
from deit_fast.data.loader.loaders import Batch, EvalLoader, TrainLoader
from deit_fast.data.loader.sampler import build_samplers
from deit_fast.data.loader.setting import choose_setting, decodes_regions
from deit_fast.data.loader.tuning import LoaderSetting
from deit_fast.data.sources.base import Source
from deit_fast.data.sources.memory_cache import keep_in_memory
from deit_fast.infer.evaluate import build_eval_loader, evaluate
from deit_fast.infer.precision import choose_dtype
from deit_fast.models.build import build_model, check_drop_path
from deit_fast.optim.sharding import build_mesh, gather
from deit_fast.recipe.schema import Recipe, parse_recipe
from deit_fast.runtime.errors import RunError
from deit_fast.runtime.files import write_json
from deit_fast.runtime.metrics_log import MetricsLog, Window, plot_curves
from deit_fast.runtime.profile import profiled
from deit_fast.runtime.stopping import StopSignal
from deit_fast.runtime.watchdog import START_SECONDS, Watchdog
from deit_fast.runtime.world import World, peak_memory
from deit_fast.training.bad_images import BadImages
from deit_fast.training.distill import Teacher
from deit_fast.training.divergence import Divergence, check_interval
from deit_fast.training.objective import build_micro_batch
from deit_fast.training.schedule import learning_rate, total_steps
from deit_fast.training.step import TrainStep, build_state

AGREE_STEPS = 10  # between the processes' agreements on whether to stop


class Trainer:
    """One process of a run."""

    def __init__(
        self,
        recipe: Recipe,
        source: Source,
        val_source: Source | None,
        out: Path,
        world: World,
        teacher: Teacher | None = None,
        store: RunStore | None = None,
    ) -> None:
        self.recipe, self.source, self.val_source, self.out, self.world = recipe, source, val_source, out, world
        self.samplers = build_samplers(recipe, len(source), world.rank, world.size)
        check_drop_path(recipe.model, recipe.pass_size(world.size))
        self.steps_per_epoch = self.samplers[0].steps_per_epoch
        self.total_steps = total_steps(recipe.schedule, self.steps_per_epoch)
        torch.manual_seed(recipe.run.seed_of("init"))
        model, mesh = build_model(recipe.model), build_mesh(recipe.run, world)
        if mesh is None:
            model = model.to(world.device).to(memory_format=torch.channels_last)
        self.state = build_state(recipe, model, mesh)
        self.step = TrainStep(recipe, self.state, world, choose_dtype(recipe.run, world.device), teacher)
        self.store = store
        self.notes: list[str] = []
        self.window = Window()
        self.log: MetricsLog | None = None
        self.saver: Saver | None = None
        self.watchdog = Watchdog(out, world.rank, recipe.run.hang_timeout)
        self.eval_loader: EvalLoader | None = None

    def start(self, init: Path | None, resume: str) -> None:
        """Takes up the checkpoint or the weights that `train` describes; only the main process writes."""
        folder = self.out / "checkpoints"
        lines = pull_everywhere(self.store, self.world) if self.store is not None and resume != "never" else []
        path, damaged = agree_on_checkpoint(folder, resume, self.world)
        if path is not None:
            # What is sharded stays in the file but for this process's rows.
            sharded = self.state.shards is not None
            saved = load_checkpoint(path, torch.device("cpu") if sharded else self.world.device)
            check_same_recipe(self.recipe, parse_recipe(saved["recipe"], source=str(path)), path)
            self.state.load_state_dict(saved)
            self.notes = [*lines, *damaged, f"resumed from {path} at step {self.state.step} of {self.total_steps}"]
            if saved["dtype"] != str(self.step.classifier.dtype):
                self.notes.append(f"computed in {saved['dtype']} before, in {self.step.classifier.dtype} from here on")
        elif init is not None:
            weights = load_weights(init)
            torch.manual_seed(self.recipe.run.seed_of("init"))  # for what the weights lack
            model, changes = build_initialised(self.recipe.model, weights)
            self.notes = [f"{init}: weights of {weights.source} loaded", *format_changes(changes)]
            self.state.load_weights(model.state_dict(), model.state_dict())
        if self.val_source is None:
            self.notes.append("no validation data: pass --val to evaluate")
        if self.world.is_main:
            write_json(self.out / "recipe.json", self.recipe.model_dump(mode="json"))
            if path == step_path(folder, self.state.step):  # a crash came before its link, perhaps, at the last step
                restore_link(path, folder / "last.pt")
            kept = kept_steps(folder, self.state.step)
            publish = self.store.push if self.store is not None else None
            keep = self.recipe.run.keep_checkpoints
            self.saver = Saver(folder, keep, self.state, self.world.device, kept, publish)
        self.world.barrier()

    def fit(self, stop: StopSignal) -> dict[str, Any] | None:
        """Trains to the last step and returns the result; None where a signal stopped it before, after a checkpoint."""
        path = self.out / "result.json"
        finished = self.state.step >= self.total_steps and path.exists()
        earlier = self.world.broadcast(json.loads(path.read_text(encoding="utf-8")) if finished else None)
        if earlier is not None:
            if self.world.is_main:
                print(f"{self.out}: finished already, {self.total_steps} steps", flush=True)
            return earlier
        if self.world.is_main:
            path.unlink(missing_ok=True)
            self.log = MetricsLog(self.out, self.state.step, self.total_steps)
        recipe, run = self.recipe, self.recipe.run
        bad = BadImages(self.state.bad_images, self.source, recipe.data.max_bad, self.world, self.out)
        divergence = Divergence(run, self.source, self.world, self.out)
        loader = self.build_loader()
        try:
            self._say(*self.notes)
            steps = self._timed(loader)
            for batches in profiled(steps, self.out, self.world) if run.profile else steps:
                if self.log is not None and self.state.step == 0:
                    self.log.images("samples", batches[0].images[:32], 0)
                lr = learning_rate(recipe.schedule, recipe.optim.lr, self.state.step, self.steps_per_epoch)
                self.step([build_micro_batch(recipe, batch, self.world.device) for batch in batches], lr)
                bad.add(batches)
                divergence.add(batches)
                if self.log is not None:
                    self.log.advance()
                step = self.state.step
                self.watchdog.beat(f"step {step + 1}")
                epoch, partial = divmod(step, self.steps_per_epoch)
                evaluates = step == self.total_steps or (not partial and epoch % run.eval_every == 0)
                agrees = self.world.size == 1 or step % AGREE_STEPS == 0
                stops = agrees and self.world.any(stop.received) and step < self.total_steps
                saves = evaluates or stops or (run.checkpoint_every is not None and step % run.checkpoint_every == 0)
                if saves or step % check_interval(run) == 0:
                    self._say(*bad.agree())
                    divergence.check(self.step.meter, step)
                if saves or step % run.log_every == 0:
                    self._log_window(lr)
                if evaluates:
                    self._evaluate()
                if saves:
                    self._save(evaluates)
                    self.window = Window(is_first=self.window.is_first)
                if stops:
                    self._settle()
                    return None
            self._settle()
            return self._finish()
        finally:
            loader.close()
            if self.eval_loader is not None:
                self.eval_loader.close()
            if self.saver is not None:
                self._say(*self.saver.close())
            if self.log is not None:
                self.log.close()

    def build_loader(self) -> TrainLoader:
        """The batches from the state's step to the last. On GPUs the first on a machine is preceded by a search."""
        source = keep_in_memory(self.source, self.recipe.run.cache_gib)
        regions = self.recipe.run.roi_decode and decodes_regions(self.world)
        if self.recipe.run.roi_decode and not regions:
            self.notes.append("run.roi_decode: this machine fails the trial, or has no GPU; it stays off")

        def build(setting: LoaderSetting, start: int, stop: int) -> TrainLoader:
            return TrainLoader(
                source, self.recipe.augment, self.recipe.model.image_size, self.samplers, self.recipe.run.seed,
                self.world.device, setting.threads, start_step=start, stop_step=stop,
                decode_once=self.recipe.data.decode_once, hw_decoder_load=setting.hw_decoder_load, roi_decode=regions,
            )  # fmt: skip

        setting = choose_setting(self.recipe.run.hw_decoder_load, source, self.world, build)
        if self.world.device.type == "cuda":
            self.notes.append(f"loader: {setting.threads} threads, hw_decoder_load {setting.hw_decoder_load:g}")
        return build(setting, self.state.step, self.total_steps)

    def _say(self, *lines: str) -> None:
        if self.log is not None:
            for line in lines:
                self.log.say(line)

    def _timed(self, loader: TrainLoader) -> Iterator[list[Batch]]:
        """The batches of each optimizer step, and the time spent waiting for them."""
        stream = iter(loader)
        self.window = Window()
        while True:
            asked = time.perf_counter()
            batches = list(itertools.islice(stream, self.recipe.run.accumulation))
            if not batches:
                return
            self.window.waited += time.perf_counter() - asked
            self.window.steps += 1
            yield batches

    def _log_window(self, lr: float) -> None:
        """Reads back what gathered on the device since the last time."""
        meter, window = self.step.meter, self.window
        loss, grad_norm, counted, skipped = (self.world.sum(meter.sums.clone()) / self.world.size).tolist()
        meter.sums.zero_()
        seconds = time.perf_counter() - window.start
        self.state.add_window(window.steps, seconds, is_first=window.is_first)
        self.state.skipped += round(skipped)
        values = {
            "epoch": self.state.step / self.steps_per_epoch,
            "loss": loss / counted if counted else math.nan,
            "lr": lr,
            "grad_norm": grad_norm / counted if counted else math.nan,
            "images_per_second": window.steps * self.recipe.run.global_batch / seconds,
            "data_wait": window.waited / seconds,
            "peak_memory_gib": peak_memory(self.world.device),
            "skipped": float(self.state.skipped),
        }
        if self.log is not None:
            self.log.record("train", self.state.step, values)
        if self.saver is not None:
            self._say(*self.saver.report())
        self.window = Window(is_first=False)

    def _evaluate(self) -> None:
        """Scores of the model and of its moving average, into the state and the log."""
        if self.val_source is None:
            return
        self.watchdog.beat("evaluation", START_SECONDS if self.eval_loader is None else 0.0)
        if self.eval_loader is None:
            self.eval_loader = build_eval_loader(self.recipe, self.val_source, self.world)
            self.predictors = {"": self.step.predictor(self.state.model)}
            if self.state.ema is not None:
                self.predictors["ema_"] = self.step.predictor(self.state.ema)
        scores: dict[str, float] = {}
        self.state.model.eval()
        for prefix, predict in self.predictors.items():
            result = evaluate(predict, self.eval_loader, self.world, lambda: self.watchdog.beat("evaluation"))
            scores |= {f"{prefix}{key}": value for key, value in result.values.items()}
        self.state.scores = scores
        if self.log is not None:
            self.log.record("eval", self.state.step, scores)

    def _save(self, evaluated: bool) -> None:
        if self.saver is None:
            if self.state.shards is not None:
                gather(self.state.state_dict())
            return
        beside = {"recipe": self.recipe.model_dump(mode="json"), "classes": self.source.classes}
        beside["dtype"] = str(self.step.classifier.dtype)
        self._say(*self.saver.save(beside, self.state.scores.get("top1") if evaluated else None))

    def _settle(self) -> None:
        """Waits for the last checkpoint. Raises RunError, on every process, where it could not be written."""
        self.watchdog.beat(f"the checkpoint of step {self.state.step}")
        failures = self.world.broadcast(self.saver.finish() if self.saver is not None else [])
        if failures:
            raise RunError(failures[0])

    def _finish(self) -> dict[str, Any]:
        self.watchdog.beat("the result", START_SECONDS)
        state, size = self.state, self.recipe.model.image_size
        result = {
            "recipe": self.recipe.name,
            "image_size": size,
            "step": state.step,
            **state.scores,
            "best_top1": state.best_top1 if state.scores else None,
            "images_per_second": state.steps_per_second * self.recipe.run.global_batch,
            "minutes": state.seconds / 60,
            "peak_memory_gib": peak_memory(self.world.device),
            "skipped": state.skipped,
            "bad_images": len(state.bad_images),
            "checkpoint": f"{self.store.uri if self.store is not None else self.out}/checkpoints/last.pt",
        }
        if self.log is not None:
            self.log.close()
            plot_curves(self.out, f"{self.recipe.name}, {size} px")
            write_json(self.out / "result.json", result)
        if failure := self.world.broadcast(self._publish()):
            raise RunError(failure)
        return result

    def _publish(self) -> str:
        """Brings the store, if there is one, up to date with the finished run; returns what failed."""
        try:
            if self.store is not None and self.world.is_main:
                self.store.push()
        except RunError as error:
            return f"the result is in {self.out} only: {error}"
        return ""
