"""What a pipeline shows of its stages while they run: their lines, on terminals and elsewhere."""

import ast
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from deit_fast.pipelines import dag
from deit_fast.pipelines.dag import run_stages
from torchx.runner import get_runner

from tests.conftest import ROOT
from tests.pipelines.conftest import shell


def test_logs_are_streamed_where_asked(tmp_path: Path, component: str) -> None:
    with (tmp_path / "stream").open("w") as stream, get_runner() as runner:
        stages = [shell(component, "a", "echo hello; sleep 0.3; echo bye >&2")]
        assert run_stages(stages, tmp_path / "out", runner, "local_cwd", {}, poll_seconds=0.02, stream=stream) == 0
    assert (tmp_path / "stream").read_text() == "a | hello\na | bye\n"


def test_lines_come_while_a_stage_runs_where_there_is_no_terminal(tmp_path: Path, component: str) -> None:
    """The command as a CI log has it. The stage ends only once its line has been seen; then the next one speaks."""
    go, out = tmp_path / "go", tmp_path / "out"
    stages = [shell(component, "first", f"echo one; until test -e {go}; do sleep 0.05; done; echo two"),
              shell(component, "evaluate_it", "echo three", "first")]  # fmt: skip
    code = ("import json, sys\nfrom deit_fast.pipelines import deit3\nfrom deit_fast.pipelines.stages import Stage\n"
            "deit3.build_stages = lambda *given: [Stage(**each) for each in json.loads(sys.argv[1])]\n"
            f"sys.exit(deit3.main(['--size', 'demo', '--data', 'd', '--out', {str(out)!r}]))")  # fmt: skip
    given = json.dumps([vars(stage) for stage in stages])
    with subprocess.Popen([sys.executable, "-c", code, given], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                          text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}) as driver:  # fmt: skip
        assert driver.stderr is not None
        assert driver.stderr.readline() == "first       | one\n"
        go.touch()
        assert driver.stderr.read() == "first       | two\nevaluate_it | three\n"
        assert driver.wait(60) == 0


def test_no_component_is_read_beside_a_thread_that_follows_a_log(
    tmp_path: Path, component: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CPython 3.11's ast.parse counts its depth for all threads together, and may fail in two of them."""
    parsed, followed, real, follow = [0], list[int](), ast.parse, dag.follow_log

    def parse(*given: Any, **more: Any) -> Any:
        parsed[0] += 1
        return real(*given, **more)

    def follow_log(*given: Any) -> Any:
        followed.append(parsed[0])
        return follow(*given)

    monkeypatch.setattr(ast, "parse", parse)
    monkeypatch.setattr(dag, "follow_log", follow_log)
    stages = [shell(component, name, "echo x") for name in "abc"] + [shell(component, "d", "echo y", "a", "b", "c")]
    with (tmp_path / "stream").open("w") as stream, get_runner() as runner:
        assert run_stages(stages, tmp_path / "out", runner, "local_cwd", {}, 2, 0.02, stream) == 0
    assert len(followed) == 4
    assert followed[0] > 0
    assert followed == [parsed[0]] * 4


def test_a_reader_that_leaves_ends_no_stage(tmp_path: Path, component: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "w") as stream, get_runner() as runner:
        stages = [shell(component, "a", f"echo x; echo y; touch {tmp_path / 'done'}")]
        assert run_stages(stages, tmp_path / "out", runner, "local_cwd", {}, None, 0.02, stream) == 0
    assert (tmp_path / "done").exists()
