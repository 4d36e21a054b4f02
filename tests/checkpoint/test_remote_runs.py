"""Runs kept in an object store: what is there, machines that come and go, uploads that fail or are killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from deit_fast.checkpoint.format import verify_checkpoint
from deit_fast.cli import main as cli
from deit_fast.infer.predict import load_model
from deit_fast.runtime import patience
from deit_fast.runtime.exit_status import ExitStatus
from tests.checkpoint.test_durable import LENGTH, equal, run
from tests.conftest import ROOT
from tests.loopback import serve_loopback
from tests.object_store import S3, serve
from tests.training.test_train import last_weights

OUT = "s3://bucket/runs/a"
KINDS = (".pt", ".safetensors", ".sha256")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3]:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setenv("DEIT_FAST_CACHE", str(tmp_path / "machine"))
    with serve(monkeypatch) as store:
        yield store


@pytest.fixture(scope="module")
def expected(folder_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    out = tmp_path_factory.mktemp("straight") / "run"
    assert run(folder_data, out) == 0
    return last_weights(out)


def train(data: Path, *words: str, out: str = OUT) -> int:
    return cli.main(["train", "demo_pretrain", "--data", str(data), "--out", out, *LENGTH, *words])


def stored_weights(store: S3, name: str = "last") -> dict[str, torch.Tensor]:
    return load(store.files.cat_file(f"bucket/runs/a/checkpoints/{name}.safetensors"))


def stop_at(step: int, store: S3) -> None:
    """From the checkpoint of this step on, the store takes no more of the run."""
    done = [False]

    def fault(method: str, path: str) -> str:
        done[0] |= method == "PUT" and f"step-{step:07}" in path
        return "500" if done[0] and method in ("PUT", "POST") else ""

    store.fault = fault


def test_a_run_and_what_is_made_of_it(
    store: S3, folder_data: Path, tmp_path: Path, expected: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(folder_data, "run.keep_checkpoints=2") == 0
    assert f"checkpoint                   {OUT}/checkpoints/last.pt" in capsys.readouterr().out.splitlines()
    names = store.names("runs/a")
    assert json.loads(store.files.cat_file("bucket/runs/a/result.json"))["checkpoint"] == f"{OUT}/checkpoints/last.pt"
    assert {"recipe.json", "metrics.jsonl", "result.json", "curves.png"} <= names
    stems = ("best", "last", "step-0000008", "step-0000012")
    assert {name for name in names if "/" in name and "tensorboard" not in name} == {
        f"checkpoints/{stem}{kind}" for stem in stems for kind in KINDS
    }
    assert not [name for name in names if "lock" in name or "/." in name or name.startswith(".")]
    store.files.get(f"{OUT}/checkpoints/", str(tmp_path / "got"), recursive=True)
    for stem in stems:
        verify_checkpoint(tmp_path / "got" / f"{stem}.pt")
    assert equal(stored_weights(store), expected)
    assert store.count("COPY", "last.pt") == store.count("PUT", "last.pt") == 3  # nothing goes up twice
    shutil.rmtree(tmp_path / "machine")  # another machine from here on
    assert train(folder_data) == 0
    assert "finished already, 12 steps" in capsys.readouterr().out
    assert "checkpoints/step-0000008.sha256" in store.names("runs/a")
    assert load_model(f"{OUT}/checkpoints/best.pt").classes == ["class0", "class1", "class2"]
    assert cli.main(["evaluate", f"{OUT}/checkpoints/last.pt", "--data", str(folder_data)]) == 0
    given = ["--init", f"{OUT}/checkpoints/last.pt"]
    assert cli.main(["train", "demo_pretrain", "--data", str(folder_data), "--out", str(tmp_path / "fine"), *given,
                     *LENGTH]) == 0  # fmt: skip
    assert cli.main(["evaluate", f"{OUT}/checkpoints/none.pt", "--data", str(folder_data)]) == 2
    assert f"{OUT}/checkpoints/none.pt: no such object" in capsys.readouterr().err
    given = ["--resume", f"{OUT}/checkpoints/step-0000008.pt"]
    assert cli.main(["train", "demo_pretrain", "--data", str(folder_data), "--out", str(tmp_path / "on"), *given,
                     *LENGTH]) == 0  # fmt: skip
    assert equal(last_weights(tmp_path / "on"), expected)


@pytest.mark.parametrize("machine", ["same", "fresh"])
def test_uploads_that_fail(
    store: S3, folder_data: Path, tmp_path: Path, expected: dict[str, torch.Tensor],
    capsys: pytest.CaptureFixture[str], machine: str,
) -> None:  # fmt: skip
    stop_at(8, store)
    assert train(folder_data) == ExitStatus.STORAGE_FAILED
    printed = capsys.readouterr()
    (line,) = [line for line in printed.out.splitlines() if "the checkpoint of step 8 is in" in line]
    assert f"only: {OUT}/checkpoints/step-0000008.pt: cannot be reached" in line or "safetensors" in line
    assert "step 12/12  " in printed.out  # the training went on
    *tries, line = printed.err.splitlines()
    assert all("trying again" in each for each in tries)
    assert "the checkpoint of step 12 is in" in line
    names = store.names("runs/a")
    assert "checkpoints/step-0000004.sha256" in names
    assert not {name for name in names if name.endswith("8.sha256") or name == "result.json"}
    store.fault = lambda method, path: ""
    if machine == "fresh":
        shutil.rmtree(tmp_path / "machine")
    assert train(folder_data) == 0
    step = {"same": 12, "fresh": 4}[machine]
    assert f"step-00000{step:02}.pt at step {step} of 12" in capsys.readouterr().out
    assert equal(stored_weights(store), expected)
    assert "result.json" in store.names("runs/a")


@pytest.mark.soak
def test_killed_while_it_uploads(
    store: S3, folder_data: Path, tmp_path: Path, expected: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    reached = []

    def hold(method: str, path: str) -> str:
        if method == "PUT" and path.endswith("step-0000008.safetensors"):
            reached.append(path)
            while not killed:
                time.sleep(0.01)
            return "500"
        return ""

    killed: list[bool] = []
    store.fault = hold
    words = [sys.executable, "-m", "deit_fast.cli", "train", "demo_pretrain", "--data", str(folder_data), "--out", OUT]
    process = subprocess.Popen([*words, *LENGTH], env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 100
    while not reached and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed.append(True)
    assert reached
    store.fault = lambda method, path: ""
    assert "checkpoints/step-0000008.sha256" not in store.names("runs/a")
    shutil.rmtree(tmp_path / "machine")
    assert train(folder_data) == 0
    assert "step-0000004.pt at step 4 of 12" in capsys.readouterr().out
    assert equal(stored_weights(store), expected)
    steps = [json.loads(line)["step"] for line in store.files.cat_file("bucket/runs/a/metrics.jsonl").splitlines()]
    assert sorted(set(steps)) == list(range(1, 13))


def test_a_damaged_checkpoint_in_the_store_is_passed_over(
    store: S3, folder_data: Path, tmp_path: Path, expected: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(folder_data, "run.keep_checkpoints=2") == 0
    whole = store.files.cat_file("bucket/runs/a/checkpoints/step-0000012.pt")
    store.put("runs/a/checkpoints/step-0000012.pt", whole[:-1] + bytes([whole[-1] ^ 1]))
    store.files.rm_file("bucket/runs/a/result.json")
    shutil.rmtree(tmp_path / "machine")
    capsys.readouterr()
    assert train(folder_data) == 0
    printed = capsys.readouterr().out
    assert "step-0000012.pt: damaged" in printed
    assert "step-0000008.pt at step 8 of 12" in printed
    assert equal(stored_weights(store), expected)


def test_the_store_is_the_run(store: S3, folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A machine with checkpoints of a run that the store has no more starts over; with older ones, takes the newer."""
    stop_at(8, store)
    assert train(folder_data) == ExitStatus.STORAGE_FAILED
    shutil.copytree(tmp_path / "machine", tmp_path / "old")
    store.fault = lambda method, path: ""
    assert train(folder_data, "run.checkpoint_every=6", "run.keep_checkpoints=1") == 0
    shutil.rmtree(tmp_path / "machine")
    (tmp_path / "old").rename(tmp_path / "machine")
    store.files.rm_file("bucket/runs/a/result.json")
    capsys.readouterr()
    assert train(folder_data) == 0
    assert "at step 12 of 12" in capsys.readouterr().out
    store.files.rm("bucket/runs/a", recursive=True)
    assert train(folder_data) == 0
    printed = capsys.readouterr().out
    assert "finished already" not in printed
    assert "step  1/12  " in printed


def test_a_store_that_cannot_be_written_is_known_at_once(
    store: S3, folder_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.fault = lambda method, path: "403" if method == "PUT" else ""
    assert train(folder_data) == 2
    assert train(folder_data, out="s3://other/run") == 2
    denied, missing = capsys.readouterr().err.splitlines()
    assert f"{OUT}/.writable: access denied" in denied
    assert "s3://other: no such object or bucket" in missing


@pytest.mark.soak
def test_two_processes_and_file_uris(folder_data: Path, tmp_path: Path) -> None:
    """file:// stands for any store here. The processes see the same run, and one of them writes it."""
    out = f"file://{tmp_path}/kept/run"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for machine, step in (("one", None), ("two", 12)):
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "deit_fast.cli",
             "train", "demo_pretrain", "--data", str(folder_data), "--out", out, *LENGTH],
            env={**environment, "DEIT_FAST_CACHE": str(tmp_path / machine)}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert ("finished already" in done.stdout) == (step is not None)
    verify_checkpoint(tmp_path / "kept" / "run" / "checkpoints" / "last.pt")
    places = [tmp_path / machine / f"file{tmp_path}/kept/run" for machine in ("one", "two")]
    one, two = (load((place / "checkpoints" / "step-0000012.safetensors").read_bytes()) for place in places)
    assert equal(one, two)


def test_starting_over_takes_another_prefix_and_copies_nothing(
    store: S3, folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(folder_data, "optim.lr=1e-3") == 0
    before = {name: store.files.cat_file(f"bucket/runs/a/{name}") for name in store.names("runs/a")}
    copies = store.count("COPY", "")
    capsys.readouterr()
    stop_at(8, store)
    assert train(folder_data, "--resume", "never") == 74  # it has step 4 there, and ends
    assert f"{OUT}: the earlier run stays there; this one is kept in {OUT}/later-1" in capsys.readouterr().out
    store.fault = lambda method, path: ""
    shutil.rmtree(tmp_path / "machine")  # another machine goes on with the newest
    assert train(folder_data) == 0
    printed = capsys.readouterr().out
    assert "at step 4 of 12" in printed
    assert f"{OUT}/later-1/checkpoints/last.pt" in printed
    after = {name: store.files.cat_file(f"bucket/runs/a/{name}") for name in store.names("runs/a")}
    assert {name: content for name, content in after.items() if not name.startswith("later-1/")} == before
    moved = {path for (verb, path), count in store.seen.items() if verb == "COPY" and count and "later-1" not in path}
    assert sum(store.seen["COPY", path] for path in moved) == copies
    assert train(folder_data, out="s3://bucket/runs") == 2
    assert "--out s3://bucket/runs: found a, expected a new folder, or a run's own" in capsys.readouterr().err


def test_a_run_in_gs(
    folder_data: Path, tmp_path: Path, expected: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Against the loopback store's JSON API: written while training, found whole by another machine, read by URI."""
    monkeypatch.setenv("DEIT_FAST_CACHE", str(tmp_path / "machine"))
    out = "gs://bucket/runs/a"
    with serve_loopback(monkeypatch, tmp_path / "store") as gs:
        (gs.root / "bucket").mkdir(parents=True)
        assert train(folder_data, out=out) == 0
        folder = gs.root / "bucket/runs/a/checkpoints"
        assert {path.name for path in folder.iterdir()} >= {
            f"{stem}{kind}" for stem in ("best", "last") for kind in KINDS
        }
        verify_checkpoint(folder / "last.pt")
        assert equal(load((folder / "last.safetensors").read_bytes()), expected)
        shutil.rmtree(tmp_path / "machine")
        assert train(folder_data, out=out) == 0
        assert "finished already, 12 steps" in capsys.readouterr().out
        web = f"{gs.url}/bucket/runs/a/checkpoints/best.pt"
        assert load_model(web).classes == load_model(out).classes == ["class0", "class1", "class2"]


def test_the_list_of_held_out_images_is_in_the_store(
    store: S3, folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another machine evaluates by it, and goes on with the same images where others came meanwhile."""
    photos = shutil.copytree(folder_data / "train", tmp_path / "photos")
    assert train(photos, "--val", "0.1", "schedule.epochs=1", "schedule.warmup_epochs=0") == 0
    listed = json.loads(store.files.cat_file("bucket/runs/a/val.json"))["images"]
    assert [name.partition("/")[0] for name in listed] == [f"class{label}" for label in range(3) for _ in range(3)]
    monkeypatch.setenv("DEIT_FAST_CACHE", str(tmp_path / "another"))
    for checkpoint in (OUT, f"{OUT}/checkpoints/last.pt"):
        capsys.readouterr()
        assert cli.main(["evaluate", checkpoint, "--data", str(photos), "--json", "-"]) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out)["images"] == len(listed)
        assert f"validation images: those that {OUT}/val.json lists" in printed.err
    for number in range(30):
        shutil.copyfile(photos / "class0" / "000.jpg", photos / "class0" / f"new{number:02}.jpg")
    words = ("--val", "0.1", "schedule.epochs=1", "schedule.warmup_epochs=0", "data.may_change=true")
    store.files.rm("bucket/runs/a/result.json")
    assert train(photos, *words) == 0
    assert json.loads(store.files.cat_file("bucket/runs/a/val.json"))["images"] == listed
