"""Writes checkpoints while training continues: the state is copied first, then a thread writes, syncs and renames.

Why a thread and not torch.distributed.checkpoint's async_save: every process has the whole state, a few tensors per
weight. async_save writes a folder that neither timm nor `load_weights` reads. Wanted are one file with the weights
alone and one file that torch.load(weights_only=True) reads. torch's and safetensors' writers release the interpreter's
lock.

A run with sharded weights writes the same files. The main process gathers the tensors one by one, 16 bytes per
parameter with moments and average; a host has room for that up to the largest model here. Any number of processes,
sharded or not, can resume from these files, each reading its own rows alone. Checksums, pruning and the agreement on a
checkpoint concern whole files.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from deit_fast.checkpoint.format import SEAL, SUFFIXES, link_checkpoint, read_digests, seal_checkpoint, write_checkpoint
from deit_fast.checkpoint.state import TrainState
from deit_fast.optim.sharding import is_sharded
from deit_fast.runtime.errors import RunError


class Snapshot:
    """A copy of a state in host memory, pinned if the state is on a GPU. The next copy reuses the memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._buffers: list[Tensor] = []
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def begin(self, content: Any, later: set[int]) -> Any:
        """`content`, nested dicts and lists, with a buffer in the place of each tensor [...]; `copy` fills the buffers.

        A tensor whose address is not in `later` may change before `copy` is called, so it is copied at once. So is a
        sharded tensor, for which every other process gives its rows by calling `gather` with the same content.
        """
        before, self._buffers, self._pairs = iter(self._buffers), [], []

        def visit(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: visit(each) for key, each in value.items()}
            if isinstance(value, list | tuple):
                return type(value)(visit(each) for each in value)
            if not isinstance(value, Tensor):
                return value
            sharded = is_sharded(value)
            if is_sharded(value):
                value = value.full_tensor()
            buffer = next(before, None)
            if buffer is None or (buffer.shape, buffer.dtype, buffer.stride()) != (
                value.shape, value.dtype, value.stride(),
            ):  # fmt: skip
                buffer = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
            self._buffers.append(buffer)
            if sharded:  # at once: the device has room for a few whole tensors only
                buffer.copy_(value, non_blocking=True)
            else:
                self._pairs.append((buffer, value if value.data_ptr() in later else value.clone()))
            return buffer

        rebuilt = visit(content)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        return rebuilt

    @torch.no_grad()
    def copy(self) -> None:
        """Fills the buffers, and returns when they are full.

        The writing thread calls this while the main thread trains.
        """
        with torch.cuda.stream(self._stream):
            for buffer, value in self._pairs:
                buffer.copy_(value, non_blocking=True)
        if self._stream is not None:
            self._stream.synchronize()
        self._pairs = []


class Saver:
    """The checkpoints of a run's state, in the main process: `step-0001000.pt` and so on, of which `keep` are kept.

    last.pt and best.pt, with their .safetensors and .sha256, are links to the files of their steps. At most one
    checkpoint is written at a time. A failed save is reported once, by whichever method is called next; earlier
    checkpoints stay whole. A step is saved before it is evaluated, and `mark_best` is called after the evaluation. A
    crash in between loses nothing: a run that resumes from a step without scores evaluates that step first.

    kept: the steps of the checkpoints in the folder that this state descends from; the next save removes others.
    publish: called in the thread after each checkpoint; its RunError is reported like a failed save.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        state: TrainState,
        device: torch.device,
        kept: Iterable[int],
        publish: Callable[[], None] | None = None,
    ) -> None:
        self._folder, self._keep, self._state, self._kept = folder, keep, state, sorted(kept)
        self._publish = publish
        self._snapshot = Snapshot(device)
        self._thread: ThreadPoolExecutor | None = None
        self._pending: list[Future[list[str]]] = []
        self._failed = False  # whether the last checkpoint could not be written
        self._copied = threading.Event()
        self._hook: RemovableHandle | None = None  # on the optimizer while a checkpoint is being copied
        for file in folder.glob(".*.tmp"):  # left by a process that was killed while it wrote
            file.unlink()
        for file in folder.glob("step-*.*"):
            if not file.with_suffix(SEAL).exists():
                file.unlink()

    def save(self, beside: dict[str, Any]) -> list[str]:
        """Starts to write the state and `beside` after the save before it has ended; returns that save's failures."""
        failures = self.finish()
        content = self._snapshot.begin(self._state.state_dict() | beside, _moved_by_updates(self._state))
        # Weights change in optimizer steps alone. The copy therefore has the time of a forward and a backward pass, and
        # the next optimizer step waits until the copy is complete.
        self._copied.clear()
        self._hook = self._state.optimizer.register_step_pre_hook(lambda *_: self._wait_for_copy())
        self._submit(self._work, content)
        return failures

    def mark_best(self, top1: float) -> None:
        """Makes the checkpoint of the state's step best.pt, once written, if no earlier step reached this accuracy.

        top1: the top-1 accuracy of the step's evaluation, percent.
        """
        before = self._state.best_top1
        if top1 > before:
            self._state.best_top1 = top1
            path = step_path(self._folder, self._state.step)
            self._submit(self._link_best, path, before)

    def report(self) -> list[str]:
        """The failures of the last save, a line each, if it has ended; does not wait."""
        return self.finish() if all(each.done() for each in self._pending) else []

    def finish(self) -> list[str]:
        """Waits for the checkpoint that is being written; returns its failures, a line each.

        The thread ends too. While it lives, its operations have a team of OpenMP threads beside the main thread's, and
        with more of them than cores libgomp's threads wait asleep: a small model's step then takes twice as long.
        """
        pending, self._pending = self._pending, []
        failures: list[str] = []
        try:
            for each in pending:
                failures += each.result()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
                self._thread = None
            if self._hook is not None:
                self._hook.remove()
                self._hook = None
        return failures

    def _submit(self, work: Callable[..., list[str]], *arguments: Any) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="deit-fast-save")
        self._pending.append(self._thread.submit(work, *arguments))

    def _wait_for_copy(self) -> None:
        self._copied.wait()

    def _work(self, content: dict[str, Any]) -> list[str]:
        """Writes the checkpoint; returns a line if writing failed, or if it is written but not published."""
        try:
            self._snapshot.copy()
        finally:
            self._copied.set()
        step: int = content["step"]
        self._failed = True
        path = step_path(self._folder, step)
        try:
            digests = write_checkpoint(path, content)
            seal_checkpoint(path, digests)
        except RunError as error:
            for suffix in (SEAL, *SUFFIXES):
                _ignore_errors(path.with_suffix(suffix).unlink)
            return [self._complain(error)]
        self._kept = [*(kept for kept in self._kept if kept < step), step][-self._keep :]
        try:
            link_checkpoint(path, self._folder / "last.pt", digests)
        except RunError as error:
            return [self._complain(error)]
        self._failed = False
        self._prune()
        return self._published(f"the checkpoint of step {step}")

    def _link_best(self, path: Path, before: float) -> list[str]:
        if not path.with_suffix(SEAL).exists() and not self._failed:  # resumed from another folder
            return []
        failures = []
        try:
            if not self._failed:
                link_checkpoint(path, self._folder / "best.pt", read_digests(path))
                return self._published("best.pt")
        except RunError as error:
            failures.append(self._complain(error))
        self._state.best_top1 = before  # a lower score may still be the best on the disk
        return failures

    def _complain(self, error: RunError) -> str:
        before = "; the one before it is whole" if self._kept else ""
        return f"no checkpoint this time: {error}{before}"

    def _published(self, what: str) -> list[str]:
        try:
            if self._publish is not None:
                self._publish()
        except RunError as error:
            return [f"{what} is in {self._folder} only: {error}"]
        return []

    def _prune(self) -> None:
        for file in sorted(self._folder.glob("step-*.*"), key=lambda file: file.suffix != SEAL):  # seals first
            if file.stem not in {step_path(self._folder, step).stem for step in self._kept}:
                _ignore_errors(file.unlink)


def step_path(folder: Path, step: int) -> Path:
    """The path of the checkpoint of the state after `step` steps."""
    return folder / f"step-{step:07}.pt"


def _moved_by_updates(state: TrainState) -> set[int]:
    """Addresses of the tensors that only optimizer steps change; not running statistics, nor learning rates."""
    if state.shards is not None:
        return set()  # sharded tensors are copied at once, and the rest is counters and learning rates
    tensors = list(state.model.parameters())
    if state.ema is not None:
        tensors += list(state.ema.parameters())
    moments = [value for values in state.optimizer.state.values() for value in values.values()]
    return {tensor.data_ptr() for tensor in [*tensors, *moments] if isinstance(tensor, Tensor)}


def _ignore_errors(action: Callable[[], Any]) -> None:
    """For cleaning up on a disk that may be full or gone."""
    try:
        action()
    except OSError:
        return
