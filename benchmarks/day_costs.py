"""The cost of the parts of a day on a GPU, estimated from a rehearsal on a CPU and scaled by the amount of compiling.

A part consists of Python and its imports, of graphs to compile, whose time grows with the model's blocks, and of timed
repeats, whose length the benchmark sets. The first two are measured in CPU seconds, which other programs on the machine
do not increase. The estimate assumes that Triton takes as long per block as g++, which no GPU has confirmed yet.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deit_fast.runtime.files import write_json

RECORDED = Path(__file__).with_name("day_costs.json")
REHEARSED_GRAPHS, REHEARSED_BLOCKS = 2, 4


@dataclass(frozen=True)
class Cost:
    """The work of a part besides starting."""

    graphs: int = 0
    """Number of compiled passes: the forward and backward pass of an engine's training step are one, its evaluation
    another."""
    blocks: int = 0
    """Number of blocks of the compiled model."""
    timed: float = 0.0
    """Seconds of its timed repeats and their warm-ups."""


@dataclass(frozen=True)
class Expected:
    """Seconds of a part, and seconds until its first figure."""

    first: float
    whole: float


def expected_seconds(cost: Cost) -> Expected:
    """An estimate from the recorded rehearsal."""
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    graph = recorded["graph_per_block"] * cost.blocks
    start = float(recorded["start"])
    return Expected(start + (graph if cost.graphs else 0.0), start + graph * cost.graphs + cost.timed)


def record_costs(out: Path, outcomes: dict[str, dict[str, Any]]) -> None:
    """Writes OUT/day_costs.json from a rehearsal's outcomes, if all parts ended well.

    One engine part compiles. Its time beyond that of a start counts as the cost of the smallest model's graphs.
    """
    spent = {words: each["cpu_seconds"] for words, each in outcomes.items() if each["outcome"] == "ok"}
    compiled = [words for words in spent if "run.compile=on" in outcomes[words]["ran"]]
    if not compiled:
        return
    start = min(spent.values())
    per_block = (spent[compiled[0]] - start) / (REHEARSED_GRAPHS * REHEARSED_BLOCKS)
    write_json(out / RECORDED.name, {"start": round(start, 2), "graph_per_block": round(per_block, 2)})
