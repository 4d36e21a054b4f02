"""Weights by name and by URI from a server on loopback: fetched once, whole, looked at, and kept; or one line."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import deit_fast
from benchmarks.store_server import Store
from benchmarks.store_state import Request
from deit_fast.checkpoint.format import load_checkpoint
from deit_fast.cli.main import main
from deit_fast.convert import pretrained
from deit_fast.convert.detect import Weights
from deit_fast.convert.pretrained import fetch_weights, open_weights
from deit_fast.recipe.sections import Model
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime import patience
from deit_fast.runtime.errors import RunError, StorageError
from deit_fast.runtime.object_store import ChangedError, MissingError, fetching
from deit_fast.zoo import ARCHITECTURES, PUBLISHED, Published, weights
from tests.conftest import ROOT
from tests.loopback import serve_loopback
from tests.toys import TOYS

pytestmark = pytest.mark.usefixtures("toys", "cache")

SMALL = Published("deit3", 32, 0.1, 0.1, training="made up", tag="1k", weights="https://nowhere.invalid/d/small.pth")
PAGE = b"<!DOCTYPE html><html><body>Log in to the guests' network</body></html>" * 99


def state(name: str = "deit3", image_size: int = 32) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return deit_fast.create_model(name, num_classes=3, img_size=image_size).state_dict()


def file_of(tensors: dict[str, torch.Tensor], path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": tensors}, path)
    return path.read_bytes()


def publish(monkeypatch: pytest.MonkeyPatch, *rows: Published) -> None:
    """Toys of the zoo as if their weights had been published."""
    monkeypatch.setattr(weights, "_WEIGHTS", [*weights._WEIGHTS, *rows])
    for row in rows:
        monkeypatch.setitem(weights._BY_ADDRESS, row.weights, row)


@pytest.fixture
def store(toys: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """A mirror with small.pth; `deit3` is the name of its weights."""
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(pretrained, "_CONNECT_SECONDS", 0.3)
    publish(monkeypatch, SMALL)
    file_of(state(), tmp_path / "mirror" / "small.pth")
    with serve_loopback(monkeypatch, tmp_path) as served:
        monkeypatch.setenv("DEIT_FAST_WEIGHTS", f"{served.url}/mirror")
        yield served


def refused(given: str, kind: type[Exception] = RunError) -> str:
    with pytest.raises(kind) as error:
        open_weights(given)
    assert type(error.value) is kind
    assert "\n" not in str(error.value)
    return str(error.value)


def kept(cache: Path) -> list[str]:
    """The files that a person sees below the cache folder."""
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and not path.name.endswith(".lock"))


def bodies(store: Store) -> list[Request]:
    """The requests for more than the first byte, with which one asks what is there."""
    return [each for each in store.requests if each.sent > 1]


@pytest.mark.parametrize("row", [row for row in PUBLISHED if row.weights], ids=lambda row: row.weights_name)
def test_every_entry_with_weights_is_held_to_its_architecture(row: Published) -> None:
    def of(name: str, size: int) -> Weights:
        section = Model(name=name, image_size=size, num_classes=1000)
        recipe = get_recipe("demo_pretrain").derive(model=section.model_dump())
        return Weights({}, recipe, None, file=Path("w.pth"))

    assert str(row.weights).startswith("https://dl.fbaipublicfiles.com/deit/")
    assert pretrained._as_published(of(row.name, row.resolution), row).recipe.model.image_size == row.resolution
    other = next(name for name in ARCHITECTURES if name != row.name and name not in TOYS)
    with pytest.raises(RunError, match=rf"w\.pth: has weights of {other}: expected {row.name} at {row.resolution} px"):
        pretrained._as_published(of(other, row.resolution), row)
    if row.name.startswith("patchconvnet"):  # whose weights are the same at any resolution: the row says it
        found = pretrained._as_published(of(row.name, row.resolution - 32), row)
        assert found.recipe.model.image_size == row.resolution
    else:
        with pytest.raises(RunError, match=rf"has weights at {row.resolution - 32} px: expected {row.name}"):
            pretrained._as_published(of(row.name, row.resolution - 32), row)


def test_a_name_is_fetched_once_and_kept(store: Store, cache: Path, tmp_path: Path) -> None:
    first = deit_fast.create_model("deit3", pretrained=True)
    assert kept(cache) == ["small.pth"]
    assert fetch_weights("deit3") == cache / "weights" / "small.pth"
    expected = state()
    assert all(torch.equal(value, expected[name]) for name, value in first.state_dict().items())
    count = len(store.requests)
    assert [each.sent for each in bodies(store)] == [(tmp_path / "mirror" / "small.pth").stat().st_size]
    for name in ("deit3", "deit3@32", "deit3:1k", "deit3@32:1k", str(SMALL.weights)):
        assert open_weights(name).recipe.model.name == "deit3"
    assert deit_fast.load_model("deit3@32:1k").recipe.model.num_classes == 3
    assert deit_fast.create_model("deit3@32:1k", pretrained=False).pos_embed.shape[1] == 16
    assert len(store.requests) == count


def test_a_path_comes_before_a_name(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(tmp_path / "mirror" / "small.pth", tmp_path / "deit3")
    assert fetch_weights("deit3") == Path("deit3")
    assert not store.requests
    deit_fast.create_model("deit3", pretrained=True)  # the published ones nevertheless
    assert store.requests


@pytest.mark.parametrize("fault", ["cut", "drop", "503", "429", "short"])
def test_a_transfer_that_breaks_goes_on(store: Store, cache: Path, tmp_path: Path, fault: str) -> None:
    store.retry_after = "0"
    left = [3]

    def choose(request: Request) -> str:
        left[0] -= 1
        return fault if left[0] >= 0 else ""

    store.fault = choose
    assert fetch_weights("deit3").read_bytes() == (tmp_path / "mirror" / "small.pth").read_bytes()
    assert kept(cache) == ["small.pth"]


def test_what_another_process_left_is_not_fetched_again(store: Store, cache: Path, tmp_path: Path) -> None:
    size = (tmp_path / "mirror" / "small.pth").stat().st_size
    store.fault = lambda request: "" if request.headers.get("range") == "bytes=0-0" else "cut"
    message = refused("deit3", StorageError)
    assert message.startswith(f"deit3: {store.url}/mirror/small.pth: cannot be reached (")
    (part,) = cache.rglob("*.part")
    reached = part.stat().st_size
    assert 0 < reached < size
    store.fault = lambda request: ""
    store.requests.clear()
    assert fetch_weights("deit3").stat().st_size == size
    assert sum(each.sent for each in bodies(store)) == size - reached


def test_the_servers_answers(store: Store, cache: Path, tmp_path: Path) -> None:
    address = f"{store.url}/mirror/small.pth"
    place = tmp_path / "mirror" / "small.pth"
    content = place.read_bytes()
    store.fault = lambda request: "403"
    assert refused("deit3").startswith(f"deit3: {address}: access denied (403 Forbidden)")
    store.fault = lambda request: f"302 {store.url}/elsewhere/x.pth" if request.path.startswith("/mirror") else ""
    place.unlink()
    assert refused("deit3", MissingError) == f"deit3: {address}: no such file"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.pth").write_bytes(PAGE)
    assert refused("deit3").startswith(f"deit3: {address}: starts with b'<!DOCTYP': expected a file of ")
    (tmp_path / "elsewhere" / "x.pth").write_bytes(content[: len(content) // 2])
    assert f"deit3: {address}: " in refused("deit3")
    file_of(state("resmlp"), tmp_path / "elsewhere" / "x.pth")
    assert refused("deit3") == (f"deit3: {address}: has weights of resmlp: expected deit3 at 32 px, as deit3@32:1k is")
    file_of(state(image_size=48), tmp_path / "elsewhere" / "x.pth")
    assert refused("deit3") == (f"deit3: {address}: has weights at 48 px: expected deit3 at 32 px, as deit3@32:1k is")
    assert kept(cache) == []  # nothing of all that
    (tmp_path / "elsewhere" / "x.pth").write_bytes(content)
    assert fetch_weights("deit3").read_bytes() == content


def test_a_file_that_is_replaced_meanwhile(store: Store, cache: Path, tmp_path: Path) -> None:
    place = tmp_path / "mirror" / "small.pth"

    def choose(request: Request) -> str:
        if len(store.requests) == 2:
            file_of(state() | {"more": torch.ones(100)}, place)
        return ""

    store.fault = choose
    assert "deit3: " in (message := refused("deit3", ChangedError))
    assert "it changed after it was listed" in message
    assert kept(cache) == []


@pytest.mark.parametrize("given", ["name", "uri"])
def test_the_hash_in_the_name(
    store: Store, cache: Path, tmp_path: Path, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (tmp_path / "mirror" / "small.pth").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    name, wrong = f"small-{digest[:8]}.pth", f"small-{digest[:7]}{'a' if digest[7] != 'a' else 'b'}.pth"
    for file in (name, wrong):
        (tmp_path / "mirror" / file).write_bytes(content)
    asked = {file: f"{store.url}/mirror/{file}" for file in (name, wrong)}
    if given == "name":
        rows = {file: Published("deit3", px, 0, 0, training="x", tag="1k", weights=f"https://nowhere.invalid/{file}")
                for file, px in ((name, 32), (wrong, 64))}  # fmt: skip
        monkeypatch.setattr(weights, "_WEIGHTS", list(rows.values()))
        asked = {file: str(row.weights_name) for file, row in rows.items()}
    message = refused(asked[wrong])
    assert message.endswith(
        f"{store.url}/mirror/{wrong}: its SHA-256 begins with {digest[:8]}, expected {wrong[6:14]}, as its name says"
    )
    assert kept(cache) == []
    path = fetch_weights(asked[name])
    assert path.read_bytes() == content
    if given == "name":  # what lies in the cache is looked at too: a person may have put it there
        path.write_bytes(content[:-1] + b"x")
        assert f"{path}: its SHA-256 begins with " in refused(asked[name])


def test_offline(store: Store, cache: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{store.url}/mirror/small.pth"
    assert open_weights(uri).recipe.model.name == "deit3"
    monkeypatch.setenv("DEIT_FAST_WEIGHTS", "http://127.0.0.1:9/mirror")
    place = cache / "weights" / "small.pth"
    assert refused("deit3", StorageError) == (
        "deit3: not in the cache; no network (no connection to 127.0.0.1: [Errno 111] Connection refused): put the "
        f"file at {place}, from http://127.0.0.1:9/mirror/small.pth"
    )
    assert main(["predict", "deit3", "x.jpg"]) in (2, 74)
    message = refused("http://127.0.0.1:9/small.pth", StorageError)
    assert message.startswith("http://127.0.0.1:9/small.pth: not in the cache; no network (no connection to 127.0.0.1")
    place.parent.mkdir(parents=True)
    shutil.copy(next(cache.rglob("small@*.pth")), place)  # as a person does
    assert open_weights("deit3").recipe.model.name == "deit3"
    real = pretrained.find_object
    monkeypatch.setattr(pretrained, "find_object", lambda asked: real(asked.replace(store.url, "http://127.0.0.1:9")))
    capfd.readouterr()
    assert open_weights(uri).recipe.model.name == "deit3"
    assert f"deit-fast: {uri}: no network; {cache}" in capfd.readouterr().err


def test_a_folder_of_weights(store: Store, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEIT_FAST_WEIGHTS", str(tmp_path / "mirror"))
    assert fetch_weights("deit3") == tmp_path / "mirror" / "small.pth"
    (tmp_path / "mirror" / "small.pth").rename(tmp_path / "other.pth")
    where = f"DEIT_FAST_WEIGHTS={tmp_path / 'mirror'}"
    assert refused("deit3") == (
        f"deit3: not in the cache; expected small.pth in {where}, or at {cache / 'weights' / 'small.pth'}"
    )
    monkeypatch.setenv("DEIT_FAST_WEIGHTS", str(tmp_path / "none"))
    assert refused("deit3") == f"DEIT_FAST_WEIGHTS={tmp_path / 'none'}: expected a URI, or a folder that is there"
    monkeypatch.setenv("DEIT_FAST_WEIGHTS", f"file://{tmp_path / 'mirror'}/")
    (tmp_path / "other.pth").rename(tmp_path / "mirror" / "small.pth")
    assert fetch_weights("deit3").read_bytes() == (tmp_path / "mirror" / "small.pth").read_bytes()
    assert not store.requests


def test_caches_that_cannot_be_written(
    store: Store, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = fetch_weights("deit3")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "exclusive", denied)
        assert fetch_weights("deit3") == place  # what is there needs no lock
        place.unlink()
        assert refused("deit3") == f"deit3: {place}: cannot be written (Permission denied)"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))
        message = refused("deit3")
    size = (tmp_path / "mirror" / "small.pth").stat().st_size
    assert message.startswith(f"deit3: {place.parent}: expected room for the {size} bytes of small.pth: the disk at ")
    assert message.endswith(f"has 1000 bytes free, {size - 1000} bytes too few")
    with monkeypatch.context() as patch:
        patch.setattr(
            fetching.os, "fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        assert "cannot be written (No space left on device)" in refused("deit3", StorageError)
    assert kept(cache) == []
    assert fetch_weights("deit3") == place


FETCH = """
import sys
from tests.convert.test_pretrained import SMALL
from deit_fast.convert import pretrained
from deit_fast.zoo import ARCHITECTURES, weights
from tests.toys import TOYS
ARCHITECTURES.update(TOYS)
weights._WEIGHTS.append(SMALL)
print(pretrained.fetch_weights("deit3").stat().st_size)
"""


def test_two_processes_at_once(store: Store, tmp_path: Path) -> None:
    store.latency = 0.2
    processes = [
        subprocess.Popen([sys.executable, "-c", FETCH], cwd=ROOT, stdout=subprocess.PIPE, env=os.environ.copy())
        for _ in range(2)
    ]
    size = (tmp_path / "mirror" / "small.pth").stat().st_size
    assert [int(process.communicate()[0]) for process in processes] == [size] * 2
    assert [each.sent for each in bodies(store)] == [size]


def words(data: Path, out: Path, *more: str) -> list[str]:
    return ["train", "demo_finetune", "--data", str(data), "--out", str(out), "model.name=deit3", "model.image_size=32",
            "model.num_classes=null", "run.global_batch=8", "run.precision=fp32", "schedule.epochs=1",
            "schedule.warmup_epochs=0", "run.compile=off", *more]  # fmt: skip


def test_a_run_remembers_and_goes_on_alone(
    store: Store, cache: Path, folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = hashlib.sha256((tmp_path / "mirror" / "small.pth").read_bytes()).hexdigest()
    init = {"weights": "deit3@32:1k", "address": SMALL.weights, "sha256": digest}
    assert main(words(folder_data, tmp_path / "a", "--init", "deit3")) == 0
    assert json.loads((tmp_path / "a" / "result.json").read_text())["init"] == init
    assert load_checkpoint(tmp_path / "a" / "checkpoints" / "last.pt", torch.device("cpu"))["init"] == init
    shutil.rmtree(cache)
    store.requests.clear()
    (tmp_path / "a" / "result.json").unlink()
    capsys.readouterr()
    assert main(words(folder_data, tmp_path / "a", "--init", "deit3@32")) == 0
    assert "not read" not in capsys.readouterr().out
    assert json.loads((tmp_path / "a" / "result.json").read_text())["init"] == init
    (tmp_path / "a" / "result.json").unlink()
    assert main(words(folder_data, tmp_path / "a", "--init", f"{store.url}/mirror/x.pth?key=secret")) == 0
    assert not store.requests
    assert main(words(folder_data, tmp_path / "b", "--init", "deit3_smal_patch16")) == 2
    assert "deit3_smal_patch16: no such checkpoint (did you mean" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_commands_take_names(
    store: Store, folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "deit3", str(tmp_path / "w.safetensors")]) == 0
    assert "small.pth: read as deit3 at 32 px" in capsys.readouterr().err
    image = next((folder_data / "val").rglob("*.jpg"))
    assert main(["predict", "deit3@32:1k", str(image)]) == 0
    assert main(["evaluate", str(SMALL.weights), "--data", str(folder_data)]) == 0
    assert len(bodies(store)) == 1


@pytest.fixture
def hub(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of hf://me/toy, with the weights and their config.json; huggingface_hub's own cache is empty."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    folder = tmp_path / "models" / "me" / "toy"
    folder.parent.mkdir(parents=True)
    assert main(["convert", str(tmp_path / "mirror" / "small.pth"), str(folder)]) == 0
    return folder


def test_a_model_of_the_hub(store: Store, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = open_weights("hf://me/toy")
    assert found.file is not None
    assert found.file.is_relative_to(tmp_path / "hf" / "models--me--toy" / "snapshots")
    assert (found.recipe.model.name, found.recipe.model.num_classes) == ("deit3", 3)
    count = len(bodies(store))
    assert open_weights("hf://me/toy/").file == found.file
    assert open_weights("hf://me/toy/model.safetensors").file == found.file / "model.safetensors"
    assert len(bodies(store)) == count  # of the cache, after a look at what is there now
    store.token = "secret"
    assert "401" in refused("hf://me/new") or "no such repository" in refused("hf://me/new")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert open_weights("hf://me/toy").file == found.file
    assert {each.headers.get("authorization") for each in store.requests[-2:]} == {"Bearer secret"}


def test_what_the_hub_has_not(store: Store, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    assert refused("hf://me/none").startswith("hf://me/none: no such repository, or no right to it")
    assert refused("hf://me/toy/x.bin", MissingError) == "hf://me/toy/x.bin: no such file"
    assert refused("hf://me/toy/sub").startswith("hf://me/toy/sub: expected a file of weights, or a folder with ")
    (hub / "model.safetensors").write_bytes(PAGE * 2)
    assert "toy" in refused("hf://me/toy")
    real = hashlib.sha256
    with monkeypatch.context() as patch:
        patch.setattr("deit_fast.runtime.object_store.hub.hash_file", lambda path: real(b"other").hexdigest())
        (hub / "model.safetensors").write_bytes(PAGE * 3)
        message = refused("hf://me/toy")
        assert f"its SHA-256 is {real(b'other').hexdigest()}, expected {real(PAGE * 3).hexdigest()}, as the Hub says" in message  # fmt: skip  # noqa: E501
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "as HF_HUB_OFFLINE is set, and not there" in refused("hf://me/never")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    message = refused("hf://me/never", StorageError)
    assert message.startswith("hf://me/never: not in the cache; no network (no connection to the Hub: ")
    assert message.endswith("): give the path of a copy")
