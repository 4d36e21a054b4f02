"""Checkpoints written while training goes on: a copy of the state first, then a thread that writes, syncs and renames.

A thread, not torch.distributed.checkpoint's async_save: the state is a few tensors per weight that every process has
whole, and async_save writes a folder that neither timm nor `load_weights` reads, where one file with the weights alone
and one that loads with weights_only are wanted. torch's and safetensors' writers release the interpreter's lock.

The files are the same where a run shards its weights: the main process gathers them tensor by tensor, 16 bytes per
parameter with moments and average, which a host has room for up to the largest model here. Any number of processes,
sharding or not, goes on from them, each reading its rows alone; checksums, keeping and agreement are of whole files.
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
    """A copy of a state in host memory, pinned where the state is on a GPU, which the next copy reuses."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._buffers: list[Tensor] = []
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def begin(self, content: Any, later: set[int]) -> Any:
        """`content`, nested dicts and lists, with a buffer in the place of each tensor [...], to be filled by `copy`.

        A tensor whose address is not in `later` may change before that, and is copied here and now. So is a sharded
        tensor: every other process gives its rows by calling `gather` with the same content.
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
            if sharded:  # at once: the device has no room for more than a few whole tensors
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
        """Fills the buffers; returns when they are full.

        The thread that writes calls it, while the other one goes on with training.
        """
        with torch.cuda.stream(self._stream):
            for buffer, value in self._pairs:
                buffer.copy_(value, non_blocking=True)
        if self._stream is not None:
            self._stream.synchronize()
        self._pairs = []


class Saver:
    """Checkpoints of a run's state, in the main process: `step-0001000.pt` and so on, of which `keep` stay.

    last.pt and best.pt, with what belongs to them, are links to the files of their steps. At most one checkpoint is
    being written. A save that fails is told once, by whichever method is called next; what was there before it is
    whole. A step is saved before it is evaluated, and `mark_best` follows: a crash in between loses nothing, because
    a run that goes on from a step whose scores it lacks evaluates it first.

    kept: the steps of the checkpoints in the folder that the state descends from; others go with the next save.
    publish: called in the thread after each checkpoint; its RunError is told like a save that fails.
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
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="deit-fast-save")
        self._pending: list[Future[list[str]]] = []
        self._failed = False  # whether the last checkpoint could not be written
        self._copied = threading.Event()
        self._hook: RemovableHandle | None = None  # on the optimizer, while a checkpoint is being written
        for file in folder.glob(".*.tmp"):  # of a process killed while it wrote
            file.unlink()
        for file in folder.glob("step-*.*"):
            if not file.with_suffix(SEAL).exists():
                file.unlink()

    def save(self, beside: dict[str, Any]) -> list[str]:
        """Starts to write the state, and `beside`, once the one before it is done; returns what failed of that."""
        failures = self.finish()
        content = self._snapshot.begin(self._state.state_dict() | beside, _moved_by_updates(self._state))
        # Between two updates nothing but an update changes a weight, so that the copy has a forward and a backward
        # pass's time, and the update waits for the rest of it.
        self._copied.clear()
        self._hook = self._state.optimizer.register_step_pre_hook(lambda *_: self._wait_for_copy())
        self._pending = [self._thread.submit(self._work, content)]
        return failures

    def mark_best(self, top1: float) -> None:
        """Makes the checkpoint of the state's step best.pt, once it is written, where no step before had that much.

        top1: the top-1 accuracy of its evaluation, percent.
        """
        before = self._state.best_top1
        if top1 > before:
            self._state.best_top1 = top1
            path = step_path(self._folder, self._state.step)
            self._pending.append(self._thread.submit(self._link_best, path, before))

    def report(self) -> list[str]:
        """What failed of the last save, in a line each, where it is done; does not wait."""
        return self.finish() if all(each.done() for each in self._pending) else []

    def finish(self) -> list[str]:
        """Waits for the checkpoint that is being written; returns what failed of it, in a line each."""
        pending, self._pending = self._pending, []
        failures: list[str] = []
        try:
            for each in pending:
                failures += each.result()
        finally:
            if self._hook is not None:
                self._hook.remove()
                self._hook = None
        return failures

    def close(self) -> list[str]:
        """`finish`, and the end of the thread."""
        failures = self.finish()
        self._thread.shutdown()
        return failures

    def _wait_for_copy(self) -> None:
        self._copied.wait()

    def _work(self, content: dict[str, Any]) -> list[str]:
        """Writes the checkpoint; returns a line where that failed, or where it is here, whole, and not published."""
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
        if not path.with_suffix(SEAL).exists() and not self._failed:  # resumed from another folder: none of this one
            return []
        failures = []
        try:
            if not self._failed:
                link_checkpoint(path, self._folder / "best.pt", read_digests(path))
                return self._published("best.pt")
        except RunError as error:
            failures.append(self._complain(error))
        self._state.best_top1 = before  # a lower score may still be the best that is on the disk
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
    """Where the checkpoint of the state after `step` steps lies."""
    return folder / f"step-{step:07}.pt"


def _moved_by_updates(state: TrainState) -> set[int]:
    """Addresses of the tensors that nothing but the optimizer's step changes: no running statistics, no rates."""
    if state.shards is not None:
        return set()  # sharded tensors are copied at once, and the rest is counts and rates
    tensors = list(state.model.parameters())
    if state.ema is not None:
        tensors += list(state.ema.parameters())
    moments = [value for values in state.optimizer.state.values() for value in values.values()]
    return {tensor.data_ptr() for tensor in [*tensors, *moments] if isinstance(tensor, Tensor)}


def _ignore_errors(action: Callable[[], Any]) -> None:
    """For tidying up on a disk that may be full or gone."""
    try:
        action()
    except OSError:
        return
