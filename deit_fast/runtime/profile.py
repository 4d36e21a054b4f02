"""Profiles a run: a PyTorch profiler trace of some steady steps, and a one-page summary of where the time goes."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from deit_fast.runtime.files import atomic_path
from deit_fast.runtime.hardware import peak_memory
from deit_fast.runtime.world import World

WARMUP_STEPS = 20  # torch.compile and the allocator settle within 15 steps
PROFILED_STEPS = 10
TOP = 15

# An operator or kernel belongs to the first group of which a word is in its name.
GROUPS = {
    "attention": ("attention", "fmha", "flash", "sdpa", "_softmax"),
    "matrix products": (
        "gemm",
        "::mm",
        "addmm",
        "::bmm",
        "linear",
        "convolution",
        "cutlass",
        "nvjet",
        "xmma",
        "cublas",
    ),
    "optimizer": ("_foreach", "multi_tensor", "lamb", "adam", "lerp"),
    "copies": ("memcpy", "memset", "copy_", "::to", "::cat", "fill_", "zero_"),
    "compiled elementwise": ("triton", "cpp_fused", "inductor", "compiledfunction", "torch-compiled"),
    "normalisation": ("layer_norm", "layernorm"),
}
SYNCHRONISING = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::_local_scalar_dense")

T = TypeVar("T")


@dataclass
class StepProfile:
    """A profile of consecutive steps: call `start`, run the steps, call `stop`; then read the figures and the page.

    Why not torch.profiler.schedule: the page needs the wall time of whole steps, from one idle moment of the device to
    another, and the fraction of it that is spent waiting for data. The schedule gives neither, so the steps would have
    to be counted separately. Its warm-up is one step under the profiler; here it is WARMUP_STEPS without the profiler.
    """

    device: torch.device
    steps: int = 0
    """Number of recorded steps; the caller counts them."""
    waited: float = 0.0
    """Seconds spent waiting for batches."""
    seconds: float = 0.0
    """Wall time from `start` to `stop`."""
    _events: list[Any] = field(default_factory=list)
    _profile: Any = None
    _start: float = 0.0

    def start(self) -> None:
        """Starts to record, once the device is idle."""
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)
        self._synchronise()
        self._profile.start()
        self._start = time.perf_counter()

    def stop(self) -> None:
        """Stops recording, once the device is idle; `steps` has to be set before."""
        self._synchronise()
        self.seconds = time.perf_counter() - self._start
        self._profile.stop()
        self._events = list(self._profile.events())

    def export(self, path: Path) -> None:
        """Writes the trace for chrome://tracing or Perfetto; a name that ends in .gz compresses it."""
        self._profile.export_chrome_trace(str(path))

    def figures(self) -> dict[str, Any]:
        """Per step: milliseconds, wait for data, synchronisations, GPU idle share, time by group and by operation."""
        # A named range, such as Optimizer.step, appears on the GPU too and covers its kernels, but is no kernel.
        kernels = [e for e in self._events if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
        on_gpu = self.device.type == "cuda"
        names: Counter[str] = Counter()
        calls: Counter[str] = Counter()
        for event in kernels if on_gpu else self._events:
            time_us = event.time_range.elapsed_us() if on_gpu else event.self_cpu_time_total
            names[event.name] += time_us
            calls[event.name] += 1
        groups: Counter[str] = Counter()
        for name, time_us in names.items():
            groups[_group(name)] += time_us
        total = sum(names.values()) or 1
        counted = _synchronisations(self._events)
        reads = counted.pop("aten::_local_scalar_dense", 0)
        # On a GPU the synchronising calls themselves are counted, without the one that ends the window. On a CPU only
        # the reads are known that would be such calls on a GPU.
        waits = max(0, sum(counted.values()) - 1) if on_gpu else reads
        milli = 1e-3 / self.steps
        return {
            "steps": self.steps,
            "step_ms": 1e3 * self.seconds / self.steps,
            "data_wait": self.waited / self.seconds,
            "syncs_per_step": waits / self.steps,
            "gpu_idle": _idle_share(kernels) if kernels else None,
            "groups": {name: {"ms": t * milli, "share": t / total} for name, t in groups.most_common()},
            "top": [
                {"name": name, "ms": t * milli, "share": t / total, "calls": calls[name] / self.steps}
                for name, t in names.most_common(TOP)
            ],
            "peak_memory_gib": peak_memory(self.device),
        }

    def page(self) -> str:
        """The figures as one page of text."""
        found = self.figures()
        idle = "no kernels were recorded" if found["gpu_idle"] is None else f"{found['gpu_idle']:.1%} of the time"
        where = "GPU time" if self.device.type == "cuda" else "CPU time, summed over threads"
        lines = [
            f"{found['steps']} steps of {found['step_ms']:.2f} ms, under the profiler, which slows the host down",
            f"waiting for data   {found['data_wait']:.1%} of the time",
            f"GPU idle           {idle if self.device.type == 'cuda' else 'no GPU'}",
            f"synchronisations   {found['syncs_per_step']:.2f} per step",
            f"peak memory        {found['peak_memory_gib']:.2f} GiB",
            "",
            f"{where} per step, by kind",
            *(f"  {row['ms']:9.3f} ms {row['share']:6.1%}  {name}" for name, row in found["groups"].items()),
            "",
            f"{where} per step, the {TOP} largest",
            *(
                f"  {row['ms']:9.3f} ms {row['share']:6.1%} {row['calls']:7.1f} x  {row['name'][:80]}"
                for row in found["top"]
            ),
        ]
        return "\n".join(lines) + "\n"

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def profiled(
    steps: Iterator[T], out: Path, world: World, warmup: int = WARMUP_STEPS, count: int = PROFILED_STEPS
) -> Iterator[T]:
    """The same steps; on the main process, `count` of them after `warmup` are profiled into out/profile/.

    Leaves trace.json.gz and summary.txt. If the run is shorter, the steps after the warm-up are profiled, if there are
    any.
    """
    if not world.is_main:
        yield from steps
        return
    done, watched = 0, StepProfile(world.device)
    running = False
    try:
        while True:
            asked = time.perf_counter()
            try:
                item = next(steps)
            except StopIteration:
                return
            if running:
                watched.waited += time.perf_counter() - asked
            yield item
            done += 1
            watched.steps += running
            if running and watched.steps == count:
                running = False
                _write(watched, out)
            elif done == warmup:
                watched.start()
                running = True
    finally:
        if running and watched.steps:
            _write(watched, out)


def _write(watched: StepProfile, out: Path) -> None:
    watched.stop()
    folder = out / "profile"
    folder.mkdir(parents=True, exist_ok=True)
    watched.export(folder / "trace.json.gz")
    page = watched.page()
    with atomic_path(folder / "summary.txt") as path:
        path.write_text(page, encoding="utf-8")
    print(f"profile: {folder}\n{page}", flush=True)


def _group(name: str) -> str:
    lower = name.lower()
    return next((group for group, words in GROUPS.items() if any(word in lower for word in words)), "other")


def _synchronisations(events: list[Any]) -> Counter[str]:
    """How often each of SYNCHRONISING was called by a thread of the step.

    The profiler records torch's operations on the thread that started it and on autograd's, but CUDA's calls on every
    thread of the process: the loader's (DALI) wait for the GPU all the time, and hold no step up.
    """
    on_host = [event for event in events if event.device_type == DeviceType.CPU]
    ours = {event.device_resource_id for event in on_host if "::" in event.name}
    waits = [event for event in on_host if event.name in SYNCHRONISING]
    return Counter(event.name for event in waits if event.device_resource_id in ours)


def _idle_share(kernels: list[Any]) -> float:
    """Share of the time from the first kernel's start to the last one's end in which none ran."""
    spans = sorted((event.time_range.start, event.time_range.end) for event in kernels)
    busy, reached = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return 1.0 - busy / max(reached - spans[0][0], 1e-9)
