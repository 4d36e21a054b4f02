"""Pipelines on the real local_cwd scheduler, with components that run one line of shell."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
from deit_fast.pipelines.dag import run_stages
from deit_fast.pipelines.schedulers.local_cwd import find_processes
from deit_fast.pipelines.stages import Stage, sort_stages
from deit_fast.pipelines.state import PipelineError
from torchx.runner import get_runner

from deit_fast.runtime.errors import RunError
from deit_fast.runtime.files import locked
from tests.pipelines.conftest import run, shell, states, wait_for


def test_bad_graphs_are_one_line() -> None:
    a, b = Stage("a", "c", (), ("b",)), Stage("b", "c", (), ("a",))
    for stages, message in (
        ([a, b], "circle"),
        ([a], "stage 'a' needs 'b'"),
        ([Stage("a", "c", ()), Stage("a", "c", ())], "stage 'a': defined twice"),
    ):
        with pytest.raises(PipelineError, match=message) as error:
            sort_stages(stages)
        assert "\n" not in str(error.value)
    assert [stage.name for stage in sort_stages([a, Stage("b", "c", ())])] == ["b", "a"]


def test_needs_come_first_and_a_second_run_does_nothing(
    tmp_path: Path, component: str, journal: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stages = [
        shell(component, "c", f"echo c >> {journal}", "b"),
        shell(component, "a", f"sleep 0.2; echo a >> {journal}"),
        shell(component, "b", f"echo b >> {journal}", "a"),
    ]
    assert run(stages, tmp_path / "out") == 0
    assert run(stages, tmp_path / "out") == 0
    assert journal.read_text().split() == ["a", "b", "c"]
    assert states(tmp_path / "out") == dict.fromkeys("abc", "succeeded")
    assert capfd.readouterr().out.count("done before") == 3


@pytest.mark.parametrize("limit", [1, None])
def test_parallel_stages_meet_and_the_limit_keeps_them_apart(tmp_path: Path, component: str, limit: int | None) -> None:
    script = "touch {0}; sleep 0.6; rm {0}"
    count = f"; ls {tmp_path} | grep -c busy >> {tmp_path}/seen"
    names = ["x", "y"]
    stages = [
        shell(component, name, script.format(f"{tmp_path}/busy_{name}").replace("; rm", f"{count}; rm"))
        for name in names
    ]
    assert run(stages, tmp_path / "out", limit) == 0
    assert max((tmp_path / "seen").read_text().split()) == ("1" if limit else "2")


def test_failure_stops_dependants_only_and_resumes(
    tmp_path: Path, component: str, journal: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = "E1121 1 site-packages/torch/distributed/elastic/multiprocessing/api.py:984] failed (exitcode: 1)"
    stages = [
        shell(component, "a", f"echo a >> {journal}"),
        shell(
            component,
            "bad",
            f"seq 100 130; echo the reason >&2; echo '{report}' >&2; echo traceback >&2; test -e {tmp_path}/mended",
            "a",
        ),
        shell(component, "after", f"echo after >> {journal}", "bad"),
        shell(component, "beside", f"sleep 0.5; echo beside >> {journal}", "a"),
    ]
    assert run(stages, tmp_path / "out") == 1
    printed = capfd.readouterr().out
    assert "the reason" in printed
    assert "130" in printed
    assert "105" not in printed  # a tail, not the log
    assert "traceback" not in printed  # torchrun's report of the failure is cut off
    assert "not started: a stage it needs failed" in printed
    assert states(tmp_path / "out") == {"a": "succeeded", "bad": "failed", "beside": "succeeded"}
    assert list((tmp_path / "out" / "logs" / "bad").rglob("stderr.log"))

    (tmp_path / "mended").touch()
    assert run(stages, tmp_path / "out") == 0
    assert journal.read_text().split() == ["a", "beside", "after"]
    assert json.loads((tmp_path / "out" / "pipeline.json").read_text())["stages"]["bad"]["attempt"] == 2


def test_changed_definition_of_a_done_stage_is_refused(tmp_path: Path, component: str, journal: Path) -> None:
    result = str(tmp_path / "result.json")
    first = shell(component, "a", f"echo one >> {journal}; echo {{}} > {result}", result=result)
    other = shell(component, "a", f"echo two >> {journal}; echo {{}} > {result}", result=result)
    then = shell(component, "b", "true", "a")
    assert run([first, then], tmp_path / "out") == 0
    with pytest.raises(PipelineError, match=r"stage 'a' was run with .*one.*, not .*two.*another folder, or remove"):
        run([other, then], tmp_path / "out")
    placed = Stage("a", component, first.arguments, where=("--refuse", ""), output=result, result=result)
    assert run([placed, then], tmp_path / "out") == 0  # where it runs may change
    Path(result).unlink()
    with pytest.raises(PipelineError, match="'b' is done but 'a', which it needs, has to run again"):
        run([other, then], tmp_path / "out")
    assert run([other], tmp_path / "out") == 0
    assert journal.read_text().split() == ["one", "two"]


def test_nothing_starts_when_any_stage_is_refused(
    tmp_path: Path, component: str, journal: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = shell(component, "a", f"echo a >> {journal}")
    with pytest.raises(SystemExit, match="2"):
        run([good, Stage("b", component, ("--refuse", "no such key", "--script", "true"))], tmp_path / "out")
    assert capfd.readouterr().err == "no such key\n"
    with pytest.raises(PipelineError, match=r"stage 'b': .*nowhere"):
        run([good, Stage("b", component.replace(":sh", ":nowhere"), ())], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not journal.exists()


def test_one_driver_at_a_time_and_foreign_state_is_refused(tmp_path: Path, component: str) -> None:
    stages = [shell(component, "a", "true")]
    with locked(tmp_path / "out", "pipeline.lock", "a test"), pytest.raises(RunError, match="another run"):
        run(stages, tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pipeline.json").write_text("[]")
    with pytest.raises(PipelineError, match="expected the state of a pipeline"):
        run(stages, tmp_path / "out")


def start_driver(stages: list[Stage], folder: Path) -> subprocess.Popen[str]:
    code = (
        "import sys\nfrom torchx.runner import get_runner\nfrom deit_fast.pipelines.dag import run_stages\n"
        "from deit_fast.pipelines.stages import Stage\n"
        f"stages = {stages!r}\n"
        "from pathlib import Path\n"
        "with get_runner() as runner:\n"
        f"    status = run_stages(stages, Path({str(folder)!r}), runner, 'local_cwd', {{}}, poll_seconds=0.02)\n"
        "sys.exit(status)\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("with_result", [True, False])
def test_a_job_outlives_its_killed_driver_and_is_followed(
    tmp_path: Path, component: str, journal: Path, capfd: pytest.CaptureFixture[str], with_result: bool
) -> None:
    result, go = str(tmp_path / "result.json") if with_result else "", tmp_path / "go"
    script = f"echo begin >> {journal}; until test -e {go}; do sleep 0.05; done; echo {{}} > {tmp_path}/result.json"
    stages = [
        shell(component, "a", f"{script}; echo end >> {journal}", result=result),
        shell(component, "b", f"echo b >> {journal}", "a"),
    ]
    driver = start_driver(stages, tmp_path / "out")
    wait_for(tmp_path / "out" / "pipeline.json", "running")
    wait_for(journal, "begin")
    driver.kill()
    driver.communicate()
    handle = json.loads((tmp_path / "out" / "pipeline.json").read_text())["stages"]["a"]["handle"]
    assert find_processes(handle)

    release = subprocess.Popen(["/bin/sh", "-c", f"sleep 1; touch {go}"])
    assert run(stages, tmp_path / "out") == 0
    release.wait()
    printed = capfd.readouterr().out
    assert f"still there   {handle}" in printed
    # How an orphan ended only its result tells: without one it is run again, never beside itself.
    once = ["begin", "end"]
    assert journal.read_text().split() == (once if with_result else once * 2) + ["b"]


def test_interrupt_ends_local_jobs_and_stays_resumable(tmp_path: Path, component: str, journal: Path) -> None:
    script = f"echo begin >> {journal}; test -e {tmp_path}/go || exec sleep 60"
    stages = [shell(component, "a", script), shell(component, "b", f"echo b >> {journal}", "a")]
    driver = start_driver(stages, tmp_path / "out")
    wait_for(journal, "begin")
    wait_for(tmp_path / "out" / "pipeline.json", "running")
    handle = json.loads((tmp_path / "out" / "pipeline.json").read_text())["stages"]["a"]["handle"]
    os.kill(driver.pid, signal.SIGINT)
    printed, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "stopped; run this again to continue" in printed
    assert not find_processes(handle)
    assert states(tmp_path / "out") == {"a": "cancelled"}
    (tmp_path / "go").touch()
    assert run(stages, tmp_path / "out") == 0
    assert journal.read_text().split() == ["begin", "begin", "b"]


@pytest.mark.parametrize("lost", [False, True], ids=["raised", "raised in a weak reference's callback"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_between_two_polls_is_not_lost(
    tmp_path: Path, component: str, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    def interrupt(_: object = None) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)

    with get_runner() as runner:
        asked = runner.status

        def status(handle: str) -> object:
            monkeypatch.setattr(runner, "status", asked)
            if not lost:
                interrupt()
            dropped = weakref.ref(threading.Event(), interrupt if lost else None)
            assert dropped() is None
            return asked(handle)

        monkeypatch.setattr(runner, "status", status)
        stages = [shell(component, "a", "exec sleep 30")]
        assert run_stages(stages, tmp_path / "out", runner, "local_cwd", {}, poll_seconds=0.02) == 130
    assert states(tmp_path / "out") == {"a": "cancelled"}


@pytest.mark.parametrize("presses", [1, 2])
def test_an_interrupt_waits_for_what_a_stage_saves_and_a_second_does_not(
    tmp_path: Path, component: str, journal: Path, presses: int
) -> None:
    go = tmp_path / "go"
    saves = f"until test -e {go}; do sleep 0.05; done; echo saved >> {journal}; exit 75"
    script = f"trap '{saves}' TERM; echo begin >> {journal}; while :; do sleep 0.05; done"
    driver = start_driver([shell(component, "a", script)], tmp_path / "out")
    wait_for(journal, "begin")
    wait_for(tmp_path / "out" / "pipeline.json", "running")
    handle = json.loads((tmp_path / "out" / "pipeline.json").read_text())["stages"]["a"]["handle"]
    assert driver.stdout is not None
    os.kill(driver.pid, signal.SIGINT)
    assert any("once more ends it at once" in line for line in driver.stdout)
    if presses == 1:
        go.touch()
    else:
        os.kill(driver.pid, signal.SIGINT)
    driver.communicate()
    assert driver.returncode == 130
    assert not find_processes(handle)
    assert ("saved" in journal.read_text()) == (presses == 1)
