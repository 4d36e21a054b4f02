"""What a component refuses before a job is submitted, and what it leaves to the nodes."""

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, NoReturn

import pytest
from deit_fast.components import checks, deit

from deit_fast.recipe.table import get_recipe

SMALL = ["model.num_classes=3"]


class Refused(Exception):
    """The lines on stderr of a component that refuses."""


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str], folder_data: Path):
    def pretrain(*words: str, component=deit.pretrain, **arguments: object) -> str:
        given = {"recipe": "demo_pretrain", "data": str(folder_data), "out": str(tmp_path / "run"), **arguments}
        try:
            return component(*(words or SMALL), **given).roles[0].args[1]
        except SystemExit as stop:
            (line,) = capfd.readouterr().err.splitlines()
            raise Refused(f"{stop.code} {line}") from None

    return pretrain


def test_good_paths_are_submitted(call, folder_data: Path) -> None:
    assert "deit_fast.cli train demo_pretrain" in call()
    assert call(val=str(folder_data / "val"))


@pytest.mark.parametrize("name", ["data", "val", "init", "labels"])
def test_a_path_beside_what_is_here_is_a_mistake(call, tmp_path: Path, name: str) -> None:
    component = deit.finetune if name == "init" else deit.pretrain
    with pytest.raises(Refused, match=rf"^2 deit-fast: {name}='{tmp_path}/typo': no such path"):
        call(component=component, **{name: str(tmp_path / "typo")})


def test_shards_that_are_missing_from_a_range(call, tmp_path: Path) -> None:
    (tmp_path / "train-0.tar").touch()
    with pytest.raises(Refused, match=r"train-\{0\.\.1\}\.tar': .*/train-1\.tar is missing"):
        call(data=f"{tmp_path}/train-{{0..1}}.tar")
    (tmp_path / "train-1.tar").touch()
    assert call(data=f"{tmp_path}/train-{{0..1}}.tar")
    assert call(data=f"{tmp_path}/train-*.tar")
    (tmp_path / "part-0").mkdir()
    (tmp_path / "part-0" / "train-0.tar").touch()
    assert call(data=f"{tmp_path}/part-*/train-*.tar")
    with pytest.raises(Refused, match="typo is missing"):
        call(data=f"{tmp_path}/typo/part-*/train-*.tar")


def test_an_empty_folder_and_another_number_of_classes(call, tmp_path: Path, folder_data: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refused, match=r"^2 .*empty': expected a folder of images or \.tar shards, found an empty one"):
        call(data=str(tmp_path / "empty"))
    with pytest.raises(Refused, match=f"model.num_classes=10: {folder_data} has 3 classes; set model.num_classes=3"):
        call("run.log_every=7")
    assert call("model.num_classes=null")


@pytest.mark.parametrize("more", ["@eaDir", "__MACOSX", "$RECYCLE.BIN", "labels.csv", "0.tar"])
def test_what_may_be_no_class_is_left_to_the_job(call, tmp_path: Path, folder_data: Path, more: str) -> None:
    shutil.copytree(folder_data, tmp_path / "data")
    other = tmp_path / "data" / "train" / more
    other.write_text("x") if "." in more else (other / "sub").mkdir(parents=True)
    assert call(data=str(tmp_path / "data"))
    assert call(data=str(folder_data / "train"))  # classes, or splits of other names


def test_a_flat_folder_and_one_that_cannot_be_listed(
    call, tmp_path: Path, folder_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder_data / "train", tmp_path / "train" / "images")  # of all classes
    assert call(data=str(tmp_path))

    def refuse(path: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(checks.os, "scandir", refuse)
    checks.check_classes(get_recipe("demo_pretrain"), str(folder_data), SimpleNamespace(in_container=False))


@pytest.mark.parametrize(
    "arguments",
    [
        {"data": "/absent/imagenet"},  # no such folder here: the nodes' own disk
        {"data": "images"},  # the working folder is the job's
        {"data": "s3://bucket/imagenet"},
        {"data": "/data/typo", "mounts": "type=volume,src=claim,dst=/data"},  # a pod's
        {"data": "/usr/typo", "image": "registry.example.org/team/deit_fast"},  # in the image
        {"data": "/imagenet"},  # where a node may have mounted it
        {"data": "~nobody-has-this-name/imagenet"},
        {"data": "x" * 5000},
    ],
)
def test_what_only_the_nodes_may_have_is_left_to_them(call, arguments: dict[str, object]) -> None:
    assert call(**arguments)


def test_a_checkpoint_that_a_run_is_about_to_write(call, tmp_path: Path) -> None:
    (tmp_path / "pretrain" / "checkpoints").mkdir(parents=True)
    assert call(component=deit.finetune, init=str(tmp_path / "pretrain" / "checkpoints" / "last.pt"))


def test_weights_by_name(call) -> None:
    """A name goes to the job as it is; one of weights that nobody published is refused here."""
    for name in ("deit3_small_patch16@384:21k", "deit3_small_patch16_384.fb_in22k_ft_in1k", "hf://timm/name"):
        assert f"--init {name}" in call(component=deit.finetune, init=name)
        assert f"evaluate {name}" in deit.evaluate(checkpoint=name, data="d").roles[0].args[1]
    for where in ({}, {"image": "registry.example.org/team/deit_fast"}):
        with pytest.raises(Refused, match=r"^2 deit-fast: init='deit3_small_patch16@512': expected deit3"):
            call(component=deit.finetune, init="deit3_small_patch16@512", **where)


def test_another_file_system_is_the_nodes(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scratch disk, which every machine has for itself."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    device = checks._device
    monkeypatch.setattr(checks, "_device", lambda path: -1 if path == scratch else device(path))
    assert call(data=str(scratch / "imagenet"))


def test_room_for_the_checkpoints(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        total: int = 100 << 20
        used: int = 90 << 20
        free: int = 10 << 20

    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage())
    words = ["model.name=deit3_small_patch16", "model.num_classes=3", "model.image_size=224"]
    message = rf"out='{tmp_path}/run': the disk at {tmp_path} has 10 MiB free; expected \d{{4}} MiB for"
    with pytest.raises(Refused, match=message):
        call(*words)
    assert call(*words, out="/absent/run")
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "result.json").touch()
    assert call(*words, out=str(tmp_path / "done"))  # which only returns its result
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(0, 0, 0))  # a FUSE file system that does not know
    assert call(*words)


def test_an_empty_class_folder_is_left_to_the_job(call, tmp_path: Path, folder_data: Path) -> None:
    shutil.copytree(folder_data, tmp_path / "data")
    (tmp_path / "data" / "train" / "class3").mkdir()
    assert call(data=str(tmp_path / "data"))  # it says which class has no images


def test_a_share_to_hold_out_is_no_path(call) -> None:
    assert "--val 0.1 " in call(val="0.1") + " "
    with pytest.raises(Refused, match="--val 10: expected a share from 0 to below 1"):
        call(val="10")


def test_a_recipe_that_finetunes_needs_weights(call) -> None:
    with pytest.raises(Refused, match="recipe='probe': expected the component finetune, with --init"):
        call("model.num_classes=3", recipe="probe")
    assert "--init none" in call("model.num_classes=3", component=deit.finetune, recipe="probe", init="none")
