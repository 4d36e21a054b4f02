"""The training loop: steps, and at intervals a guard, a line of metrics, an evaluation, a checkpoint."""

import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import NamedTuple

from deit_fast.checkpoint.state import TrainState
from deit_fast.data.loader.batches import Batch, TrainLoader
from deit_fast.runtime.errors import DivergedError, StoppedError
from deit_fast.runtime.metrics_log import MetricsLog
from deit_fast.runtime.profile import profiled
from deit_fast.runtime.stopping import StopSignal
from deit_fast.runtime.watchdog import START_SECONDS, Watchdog
from deit_fast.training.distill import Teacher
from deit_fast.training.guards import BadImages, Divergence, check_interval
from deit_fast.training.job import Job
from deit_fast.training.objective import BatchBuilder
from deit_fast.training.periodic import Checkpoints, Evaluation, TrainMetrics, draw_curves, publish_ending
from deit_fast.training.prepare import prepare
from deit_fast.training.schedule import learning_rate
from deit_fast.training.start import build_loader

AGREE_STEPS = 10  # steps between the processes' agreements on whether to stop


def run_loop(
    job: Job, state: TrainState, teacher: Teacher | None, log: MetricsLog, watchdog: Watchdog, stop: StopSignal
) -> bool:
    """Trains from the state's step to the last step; returns whether that step was reached and evaluated.

    False means that a signal stopped the run earlier, after a checkpoint unless the last step was skipped. Raises
    DivergedError or BadDataError where a guard ends the run.
    """
    recipe, world, finished = job.recipe, job.world, False
    with ExitStack() as stack:
        checkpoints = stack.enter_context(closing(Checkpoints(job, state, log)))
        loader = stack.enter_context(closing(build_loader(job, state.step, state.image_backend)))
        metrics = TrainMetrics(job, state, log)
        step = prepare(recipe, state, world, job.dtype, teacher)
        evaluation = stack.enter_context(closing(Evaluation(job, state, step, log, watchdog, stop)))
        bad_images = BadImages(state.bad_images, job.source, recipe.data.max_bad, world, job.out)
        divergence = Divergence(job)
        build_batch = BatchBuilder(recipe, world.device)
        batches_of_steps = batches_by_step(loader, recipe.run.passes, metrics)
        if recipe.run.profile:
            batches_of_steps = profiled(batches_of_steps, job.out, world)

        if evaluates_at(job, state.step):
            evaluation.catch_up()
            checkpoints.mark_best()
            metrics.restart()
            watchdog.beat("the first step", START_SECONDS)

        for batches in batches_of_steps:
            if state.step == 0:
                log.images("samples", batches[0].images[:32], 0)
            lr = learning_rate(recipe.schedule, recipe.optim.lr, state.step, job.steps_per_epoch)
            step([build_batch(batch) for batch in batches], lr)

            bad_images.note(batches)
            divergence.note(batches, lr)
            log.advance()
            stop.saves = True
            watchdog.beat(f"step {state.step + 1}")
            due = what_is_due(job, state.step, stop)
            if due.check:
                log.say(*bad_images.check())
                if ending := divergence.check(step.meter, state.step):
                    metrics.record(step.meter, lr)  # the last figures before the end
                    draw_curves(job)
                    log.say(*publish_ending(job))
                    raise DivergedError(ending)
            if due.log:
                metrics.record(step.meter, lr)
            checkpoints.report()
            # No checkpoint between skipped steps: the weights have not changed, and a resumed run must meet the whole
            # row again.
            saves = due.save and (not divergence.skipping or state.step == job.total_steps)
            if saves:
                checkpoints.save()
            if due.evaluate:
                try:
                    evaluation.run()
                except StoppedError:  # the next start evaluates this step's checkpoint
                    due = due._replace(stop=True)
                else:
                    if saves:
                        checkpoints.mark_best()
            if due.save:
                metrics.restart()
                log.paused()
            if due.stop:
                if not saves:
                    log.say(f"step {state.step} was skipped: the checkpoint before it stays the last")
                break
        else:
            finished = True
        watchdog.beat(f"the checkpoint of step {state.step}")
        checkpoints.settle()
    return finished


class Due(NamedTuple):
    """The actions that follow a step."""

    check: bool
    log: bool
    evaluate: bool
    save: bool
    stop: bool


def what_is_due(job: Job, step: int, stop: StopSignal) -> Due:
    """The actions that follow the first `step` steps, the same in every process.

    Every AGREE_STEPS steps the processes agree on whether one of them received a signal to stop.
    """
    run = job.recipe.run
    is_last = step == job.total_steps
    evaluates = evaluates_at(job, step)
    agrees = job.world.size == 1 or step % AGREE_STEPS == 0
    stops = agrees and job.world.any(stop.received) and not is_last
    saves = evaluates or stops or (run.checkpoint_every is not None and step % run.checkpoint_every == 0)
    return Due(
        check=saves or step % check_interval(run) == 0,
        log=saves or step % run.log_every == 0,
        evaluate=evaluates,
        save=saves,
        stop=stops,
    )


def evaluates_at(job: Job, step: int) -> bool:
    """Whether the state after `step` steps is evaluated."""
    epoch, rest = divmod(step, job.steps_per_epoch)
    return step == job.total_steps or (step > 0 and rest == 0 and epoch % job.recipe.run.eval_every == 0)


def evaluations_left(job: Job, step: int) -> int:
    """The number of evaluations after the one at `step`, including the last step's."""
    if job.val_source is None:
        return 0
    every = job.steps_per_epoch * job.recipe.run.eval_every
    last = job.total_steps % every != 0 and step < job.total_steps
    return job.total_steps // every - step // every + last


def batches_by_step(loader: TrainLoader, accumulation: int, metrics: TrainMetrics) -> Iterator[list[Batch]]:
    """The batches of each optimizer step; counts the steps, and the time spent waiting, in the window of `metrics`."""
    stream = iter(loader)
    while True:
        asked = time.perf_counter()
        batches = list(itertools.islice(stream, accumulation))
        if not batches:
            return
        metrics.window.waited += time.perf_counter() - asked
        metrics.window.steps += 1
        yield batches
