"""The method of all measurements: interleaved repeats, medians with spread, the machine, one JSON per command."""

import contextlib
import datetime
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from deit_fast.runtime.errors import one_line
from deit_fast.runtime.files import write_json
from deit_fast.runtime.hardware import has_bf16

from .cpu_time import cpu_seconds
from .figures import write_figure
from .machine import describe_machine, gpu_state, versions

SCHEMA = 1
REPEATS = 5
Row = dict[str, Any]
Stats = dict[str, float]


def stats(values: Sequence[float]) -> Stats:
    """Median and spread."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "repeats": len(values),
    }


def rate(amount: float, seconds: Stats) -> Stats:
    """Amount per second, from the seconds that the amount took."""
    return {
        "median": amount / seconds["median"],
        "min": amount / seconds["max"],
        "max": amount / seconds["min"],
        "repeats": seconds["repeats"],
    }


@dataclass(frozen=True)
class Timing:
    """The cost of one call of a case."""

    seconds: Stats
    cpu_seconds: Stats
    """CPU seconds of this process and of its children, whether these have ended or not."""


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleave(
    cases: Mapping[str, Callable[[], object]],
    device: torch.device,
    say: Callable[[str], None],
    *,
    repeats: int = REPEATS,
    warmup: int = 2,
    seconds: float = 0.5,
    known: Callable[[str, Timing], object] = lambda name, timing: None,
) -> tuple[dict[str, Timing], dict[str, str]]:
    """The time of one call of each case, and one line for each case that failed.

    Every case is warmed up by `warmup` calls, and then called in each repeat as often as fills about `seconds`. Repeats
    alternate (a b c a b c ...), so that a machine that slows down affects all cases. Times are those of the host's
    clock between synchronisations. known: called after each repeat of a case with its name and its timing so far.
    """
    calls: dict[str, int] = {}
    errors: dict[str, str] = {}
    for name, case in cases.items():
        say(f"warm-up: {name}")
        try:
            for _ in range(warmup):
                case()
            calls[name] = max(1, min(10_000, round(seconds / _time(case, 1, device)[0])))
        except Exception as error:
            # A peer that fails here, for lack of memory or of a compiler, must not stop the measurement of the others.
            errors[name] = f"{type(error).__name__}: {one_line(error)[:300]}"
            say(f"{name} failed: {errors[name]}")
            free_memory()
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for repeat in range(repeats):
        say(f"repeat {repeat + 1} of {repeats}: {', '.join(calls)}")
        for name, count in calls.items():
            samples[name].append(_time(cases[name], count, device))
            known(name, _timing(samples[name]))
    return {name: _timing(rows) for name, rows in samples.items()}, errors


def _timing(samples: list[tuple[float, float]]) -> Timing:
    return Timing(*(stats(column) for column in zip(*samples, strict=True)))


def _time(case: Callable[[], object], calls: int, device: torch.device) -> tuple[float, float]:
    """Wall and CPU seconds per call."""
    synchronise(device)
    start, cpu = time.perf_counter(), cpu_seconds()
    for _ in range(calls):
        case()
    synchronise(device)
    return (time.perf_counter() - start) / calls, (cpu_seconds() - cpu) / calls


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # without it the figure is the process's peak, which is never too low
        Path("/proc/self/clear_refs").write_text("5")  # resets the kernel's high-water mark of the resident set


def peak_memory_mb(device: torch.device) -> float:
    """MB since the reset: of torch's allocator on a GPU, of the whole process's resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def matmul_ceiling(device: torch.device, quick: bool) -> Row:
    """TFLOP/s of a large square matrix product on random numbers: bf16 on GPUs, the faster of fp32 and bf16 on CPUs."""
    side = (4096 if quick else 8192) if device.type == "cuda" else (1024 if quick else 2048)
    types = [torch.bfloat16] if device.type == "cuda" else [torch.float32]
    if device.type == "cpu" and has_bf16(device):
        types.append(torch.bfloat16)
    best: Row = {}
    for dtype in types:
        a, b, out = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))

        def multiply(a: torch.Tensor = a, b: torch.Tensor = b, out: torch.Tensor = out) -> None:
            torch.mm(a, b, out=out)

        timed, _ = interleave({"matmul": multiply}, device, _silent, warmup=3, seconds=0.1 if quick else 0.3)
        tflops = rate(2 * side**3 / 1e12, timed["matmul"].seconds)
        if not best or tflops["median"] > best["tflops"]["median"]:
            best = {"tflops": tflops, "dtype": str(dtype).removeprefix("torch."), "side": side}
    return best


def copy_case(device: torch.device, quick: bool) -> tuple[Callable[[], object], int]:
    """A copy far larger than any cache, and the number of bytes that it reads and writes."""
    mega = (256 if quick else 1024) if device.type == "cuda" else (64 if quick else 256)
    source = torch.randn(mega * 2**18, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * mega * 2**20


def _silent(_: str) -> None:
    pass


@dataclass
class Session:
    """One command: its device, its time limit, and its JSON, which is rewritten after every row."""

    benchmark: str
    device: torch.device
    quick: bool
    path: Path
    minutes: float | None = None
    brief: bool = False
    settings: Row = field(default_factory=dict)
    ceilings: Row = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)
    date: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    machine: Row = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.machine = describe_machine(self.device)

    @property
    def repeats(self) -> int:
        return 3 if self.quick or self.brief else REPEATS

    def seconds(self, quick: float, full: float) -> float:
        """The approximate length of one repeat of a case, seconds."""
        return quick if self.quick else 0.5 if self.brief else full

    def say(self, text: str) -> None:
        print(f"[{time.perf_counter() - self.start:6.1f} s] {self.benchmark}: {text}", file=sys.stderr, flush=True)

    def out_of_time(self, what: str) -> bool:
        """Whether the time is over; if so, records `what` as skipped."""
        over = self.minutes is not None and time.perf_counter() - self.start > 60 * self.minutes
        if over:
            self.skip(what, "out of time")
        return over

    def skip(self, what: str, why: str) -> None:
        """Records what was left out, and why."""
        self.skipped.append(what)
        self.say(f"skipped, {why}: {what}")
        self.save()

    def measure_ceiling(self) -> float:
        """The FLOP/s of this run's matmul ceiling."""
        self.say("matmul ceiling")
        self.ceilings["matmul"] = matmul_ceiling(self.device, self.quick)
        return self.ceilings["matmul"]["tflops"]["median"] * 1e12

    def add(self, row: Row) -> None:
        """Adds a row, or replaces the last row if that is its beginning, and writes the JSON."""
        if self.rows and self._identity(self.rows[-1]) == self._identity(row):
            self.rows.pop()
        self.rows.append(row)
        self.save()

    @staticmethod
    def _identity(row: Row) -> tuple[object, ...]:
        return tuple(row.get(key) for key in ("case", "model", "resolution", "batch"))

    def note(self, name: str, value: float, unit: str) -> None:
        """Writes a figure to the folder's figures.jsonl at once; a later one with the same name replaces it."""
        line = {"benchmark": self.path.stem, "name": name, "value": value, "unit": unit, "device": self.device.type,
                "quick": self.quick, "at": time.perf_counter() - self.start}  # fmt: skip
        write_figure(self.path.parent, line)
        self.say(f"{name}: {value:.4g} {unit}")

    def save(self, ended: bool = False) -> None:
        """Writes the JSON; at the end of the command, with the machine's state at that time."""
        if ended and self.device.type == "cuda":
            self.machine["gpu_state_after"] = gpu_state(self.device)
        self.machine["load_average_after"] = os.getloadavg()[0]
        content = {
            "schema": SCHEMA,
            "benchmark": self.benchmark,
            "device": self.device.type,
            "quick": self.quick,
            "date": self.date,
            "seconds": time.perf_counter() - self.start,
            "machine": self.machine,
            "versions": versions(),
            "settings": self.settings,
            "ceilings": self.ceilings,
            "rows": self.rows,
            "skipped": self.skipped,
        }
        write_json(self.path, content)
