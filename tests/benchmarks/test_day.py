"""The day on a GPU: what is known is on the disk, a part that fails costs itself, and the next call goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import day, engine, gpu_tests
from benchmarks.__main__ import build_parser, main
from benchmarks.day import PARTS, Part, run_day
from benchmarks.day_costs import Cost, expected_seconds
from benchmarks.engine import variants
from benchmarks.figures import read_figures, write_figure
from benchmarks.measure import Session
from benchmarks.workload import TINY, add_fitting_row, find_recipe
from tests.conftest import ROOT

CPU = torch.device("cpu")


def test_every_part_is_a_command_of_this_cli() -> None:
    for part in PARTS:
        for words in filter(None, (part.words, part.rehearsed)):
            command = day._command(words, "cpu", bool(part.rehearsed), Path("out"), 60, "data" if part.data else None)
            assert build_parser().parse_args(command[3:]).command == words.split()[0]
    assert len({part.words for part in PARTS}) == len(PARTS)
    first = [part.words for part in PARTS[:9]]
    assert [words.split()[0] for words in first] == [
        "gpu-tests", "engine", "optimizer", "engine", "decode", "loader", "end-to-end", "engine", "engine"
    ]  # fmt: skip


def test_seven_minutes_reach_the_figures_that_matter_most() -> None:
    """By the recorded rehearsal: the first three parts whole, and none is expected to take longer than the call."""
    assert sum(expected_seconds(part.cost).whole for part in PARTS[:3]) < 7 * 60
    for part in PARTS:
        expected = expected_seconds(part.cost)
        assert 0 < expected.first <= expected.whole
    assert expected_seconds(Cost(graphs=4, blocks=24)).whole > expected_seconds(Cost(graphs=4, blocks=12)).whole


def test_a_crash_costs_one_part_and_the_next_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parts are little programs here: one ends well, one fails at first."""
    program = (
        "import sys, pathlib; from benchmarks.figures import write_figure; out = pathlib.Path(sys.argv[1]);"
        "word = sys.argv[2]; (out / word).open('a').write('x');"
        "write_figure(out, dict(benchmark=word, name='speed', value=2.5, unit='images/s'));"
        "sys.exit(word == 'fails' and (out / word).read_text() == 'x')"
    )
    command = lambda words, *others: [sys.executable, "-c", program, str(others[2]), words]  # noqa: E731
    monkeypatch.setattr(day, "_command", command)
    parts = [Part(word, Cost()) for word in ("fails", "works")]
    assert run_day("cpu", True, tmp_path, 10.0, None, parts) == 1
    printed = capsys.readouterr().out
    assert "failed with status 1" in printed
    assert [each["benchmark"] for each in read_figures(tmp_path)] == ["fails", "works"]
    assert run_day("cpu", True, tmp_path, 10.0, None, parts) == 0
    assert [(tmp_path / word).read_text() for word in ("fails", "works")] == ["xx", "x"]
    outcomes = {words: each["outcome"] for words, each in json.loads((tmp_path / "day.json").read_text()).items()}
    assert outcomes == {"fails": "ok", "works": "ok"}


def test_a_part_that_hangs_is_stopped() -> None:
    assert day._run([sys.executable, "-c", "import time; time.sleep(600)"], 1.0, {}) == "stopped: out of time"


def test_what_does_not_fit_is_not_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_day("cuda", False, tmp_path, 0.0, None) == 0
    assert "not started" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.json"))


def test_a_process_that_is_killed_leaves_its_figures(tmp_path: Path) -> None:
    """Right after a figure's line, without any other write."""
    options = ["--device", "cpu", "--models", TINY, "--out", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks", "optimizer", *options]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while not read_figures(tmp_path) and process.poll() is None:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert read_figures(tmp_path)[0]["unit"] == "ms"


def test_figures_survive_a_line_that_was_cut_off(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        write_figure(tmp_path, {"benchmark": "x", "name": "a", "value": value, "unit": "ms"})
    with (tmp_path / "figures.jsonl").open("a") as file:
        file.write('{"benchmark": "x", "name": "b", "val')
    assert [each["value"] for each in read_figures(tmp_path)] == [2.0]
    write_figure(tmp_path, {"benchmark": "x", "name": "c", "value": 3.0, "unit": "ms"})
    assert [each["value"] for each in read_figures(tmp_path)] == [2.0, 3.0]


@pytest.mark.parametrize(
    ("word", "batch", "names"),
    [
        ("deit3_base_patch16@224", 256, ["ours", "ours_dense"]),
        ("deit3_small_patch16@224", 512, ["ours"]),  # p = 0.05 is dense already
        ("deit3_small_patch16@384", 128, ["ours"]),  # p = 0
    ],
)
def test_the_same_graph_is_not_timed_twice(word: str, batch: int, names: list[str]) -> None:
    assert list(variants(find_recipe(word, batch), CPU)) == names


def test_models_of_a_process_do_not_share_torchs_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as many as torch keeps graphs of one function, each seen by the backend."""
    graphs: list[int] = []

    def count(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        graphs.append(1)
        return graph.forward

    session, seen = Session("throughput", CPU, True, tmp_path / "x.json"), []
    plain = torch.nn.Linear(3, 3)

    def measure(word: str, batch: int) -> dict[str, Any]:
        before = len(graphs)
        torch.compile(plain, backend=count, dynamic=False)(torch.ones(int(word), 3))
        seen.append(len(graphs) - before)
        return {"model": word}

    with torch._dynamo.config.patch(recompile_limit=3):  # timm.optim raises it to a million
        for size in range(2, 8):
            add_fitting_row(session, str(size), 2, measure)
    assert seen == [1] * 6
    assert len(session.rows) == 6


def test_a_row_is_there_before_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that ends the process amid its first step finds ours written."""
    monkeypatch.setattr(Session, "repeats", 1)

    class Ends:
        def __init__(self, *_: object) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(engine, "TimmEngine", Ends)
    words = ["engine", "--device", "cpu", "--quick", "--models", TINY, "--against", "timm", "--out", str(tmp_path)]
    assert main(words) == 130
    (path,) = tmp_path.glob("*.json")
    (row,) = json.loads(path.read_text())["rows"]
    assert row["train"]["ours"]["images_per_second"]["repeats"] == 1


def test_the_gpu_tests_are_all_that_need_no_dali() -> None:
    marked = {
        str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")
        if re.search(r"pytest\.mark\.gpu$|^from tests\.interpreter import .*\bcase\b", path.read_text(), re.MULTILINE)
    }  # fmt: skip
    found = {name for name in marked if not re.search(r"import .*\b(dali|train_pipeline)\b", (ROOT / name).read_text())}
    assert found | {"tests/optim/test_lamb_copy.py"} == set(gpu_tests.FILES)  # marked by its parameters


def test_a_day_needs_a_gpu_or_a_rehearsal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["day", "--out", "/nonexistent"]) == 2
    assert "expected an NVIDIA GPU" in capsys.readouterr().err
