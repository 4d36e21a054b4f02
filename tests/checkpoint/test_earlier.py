"""What a run folder may hold before a run starts there, and that nothing of an earlier run is ever removed."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from deit_fast.checkpoint.earlier import check_own, find_run, finish_setting_aside, set_aside
from deit_fast.convert.pretrained import fetch_weights
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RunError

RECIPE = json.dumps(get_recipe("demo_pretrain").model_dump(mode="json"))
RUN = {
    "recipe.json": RECIPE, "result.json": "{}", "metrics.jsonl": "{}\n", "metrics.prom": "x 1\n", "curves.png": "png",
    "samples.png": "png", "bad_files.txt": "a\tb\n", "nonfinite.txt": "7\n", "hang-3.txt": "stack",
    "tensorboard/events.out.tfevents.1": "events", "checkpoints/step-0000012.pt": "state",
    "checkpoints/step-0000012.sha256": "seal", "checkpoints/mine.pt": "a user's", "profile/trace.json": "[]",
    "evaluation.json": "{}", "report/scores.json": "{}",
}  # fmt: skip
BESIDE = {".lock": "", "slurm-12.out": "log", "train.log": "log", "earlier-1/recipe.json": "older"}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def read(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_all_of_a_run_moves_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, RUN | BESIDE)
    check_own(tmp_path, over=True)
    assert set_aside(tmp_path) == tmp_path / "earlier-2"
    assert read(tmp_path / "earlier-2") == RUN
    assert read(tmp_path) == BESIDE | {f"earlier-2/{name}": content for name, content in RUN.items()}
    assert set_aside(tmp_path) is None  # nothing is left to move
    write(tmp_path, {"recipe.json": "the third"})
    assert set_aside(tmp_path) == tmp_path / "earlier-3"


class Killed(BaseException):
    """The end of the process at this very call."""


def test_killed_at_any_of_its_calls_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    for moment in range(100):
        folder, left = write(tmp_path / str(moment), RUN | BESIDE), [moment]

        def deadly(call: Callable[..., object], left: list[int] = left) -> Callable[..., object]:
            def called(*rest: object, **named: object) -> object:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return call(*rest, **named)

            return called

        with monkeypatch.context() as patch:
            for name in ("rename", "mkdir", "symlink", "unlink", "fsync"):
                patch.setattr(os, name, deadly(getattr(os, name)))
            try:
                set_aside(folder)
            except Killed:
                calls += 1
            else:
                break
        check_own(folder, over=moment % 2 == 0)  # the next start, whatever its --resume
        finish_setting_aside(folder)
        set_aside(folder)  # where it was killed before the first call; a start with --resume never
        assert read(folder) == BESIDE | {f"earlier-2/{name}": content for name, content in RUN.items()}
    assert calls > len({name.partition("/")[0] for name in RUN})


def test_what_cannot_be_moved_is_one_line_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, RUN)
    rename = os.rename

    def busy(source: object, target: object) -> None:
        if str(source).endswith("checkpoints"):
            raise OSError(16, "Device or resource busy", str(source))
        rename(source, target)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", busy)
        with pytest.raises(RunError, match=r"checkpoints: cannot be moved to .*earlier-1.part \(Device") as error:
            set_aside(tmp_path)
    assert "\n" not in str(error.value)
    assert finish_setting_aside(tmp_path) == tmp_path / "earlier-1"
    assert read(tmp_path / "earlier-1") == RUN


def test_links_point_to_the_same_after_the_move(tmp_path: Path) -> None:
    run, disk = tmp_path / "runs" / "a", write(tmp_path / "disk", {"step-0000001.pt": "state"})
    write(run, {"recipe.json": RECIPE})
    (run / "checkpoints").symlink_to("../../disk")
    (run / "tensorboard").symlink_to(disk)
    moved = set_aside(run)
    assert moved is not None
    for name in ("checkpoints", "tensorboard"):
        assert (moved / name / "step-0000001.pt").read_text() == "state"
        assert not os.path.lexists(run / name)


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"train/class0/0.jpg": "", "val/class0/0.jpg": ""}, "train"),
        ({"cat.jpg": ""}, "cat.jpg"),
        ({"train-0000.tar": "", "classes.txt": ""}, "classes.txt"),
        ({"data_batch_1": "", "batches.meta": ""}, "batches.meta"),
        ({".bashrc": "", ".ssh/id": ""}, ".bashrc"),
        ({"a/recipe.json": RECIPE, "b/recipe.json": RECIPE}, "a"),  # a folder of runs
        ({"pretrain/recipe.json": RECIPE, "pipeline.json": "{}"}, "pipeline.json"),
        ({"checkpoints/epoch=3.ckpt": "", "metrics.csv": ""}, "checkpoints"),  # another project's run
        ({"recipe.json": '{"flour": 500}'}, "recipe.json"),
        ({"recipe.json": "[1"}, "recipe.json"),
        ({"line\nbreak.png": ""}, r"line\nbreak.png"),
    ],
)
def test_other_things_are_refused_by_name_and_left_alone(tmp_path: Path, files: dict[str, str], named: str) -> None:
    write(tmp_path, files)
    before = read(tmp_path)
    for over in (False, True):
        with pytest.raises(RunError) as error:
            check_own(tmp_path, over)
        assert str(error.value).startswith(f"--out {tmp_path}: found {named}, expected a new folder, or a run's own")
        assert "\n" not in str(error.value)
    assert read(tmp_path) == before


def test_a_users_file_in_a_run_stays_and_only_starting_over_is_refused(tmp_path: Path) -> None:
    for files in ({"recipe.json": RECIPE}, {"checkpoints/last.sha256": "", "checkpoints/last.pt": ""}):
        folder = write(tmp_path / str(len(files)), {**files, "notes.md": "mine"})
        check_own(folder, over=False)
        with pytest.raises(RunError, match=r"found notes\.md, .*, to start over; move it away, or choose"):
            check_own(folder, over=True)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"train.log": "nohup"},
        {"log.txt": "tee", "mine.toml": "", "run.sh": ""},
        {"lost+found/x": ""},
        BESIDE,
        {"recipe.json": RECIPE},
    ],
)
def test_where_a_run_may_start(tmp_path: Path, files: dict[str, str]) -> None:
    write(tmp_path, files)
    for over in (False, True):
        check_own(tmp_path, over)
        check_own(tmp_path / "new", over)


def test_a_place_that_was_prepared_for_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "scratch")
    check_own(tmp_path / "run", over=False)
    (tmp_path / "scratch" / "model.ckpt").touch()
    with pytest.raises(RunError, match="found checkpoints"):
        check_own(tmp_path / "run", over=False)


def test_in_a_store_the_new_run_gets_a_prefix(tmp_path: Path, cache: Path) -> None:
    uri = f"file://{tmp_path}/a"
    assert find_run(uri, "auto") == find_run(uri, "never") == (uri, "")
    write(tmp_path / "a", {"recipe.json": RECIPE, "checkpoints/step-0000008.sha256": "", "checkpoints/last.pt": ""})
    assert find_run(uri, "auto") == (uri, "")
    assert find_run(uri, "never") == (f"{uri}/later-1", uri)
    assert find_run(uri, f"{uri}/checkpoints/step-0000008.pt") == (uri, "")
    assert find_run(uri, f"{uri}/checkpoints/step-0000004.pt") == (f"{uri}/later-1", uri)
    assert find_run(uri, "elsewhere.pt") == (f"{uri}/later-1", uri)
    write(tmp_path / "a" / "later-1", {"recipe.json": RECIPE})
    assert find_run(uri, "auto") == (f"{uri}/later-1", "")
    assert find_run(uri, "never") == (f"{uri}/later-2", f"{uri}/later-1")
    write(tmp_path / "a" / "later-1", {"checkpoints/last.pt": "the newest run's"})
    assert fetch_weights(f"{uri}/").read_text() == "the newest run's"  # as --init, evaluate and predict take it
    assert fetch_weights(f"{uri}/checkpoints").read_text() == ""
    write(tmp_path / "images", {"train-0000.tar": ""})
    for resume in ("auto", "never"):
        with pytest.raises(RunError, match=r"images: found train-0000\.tar, expected a new folder"):
            find_run(f"file://{tmp_path}/images", resume)
