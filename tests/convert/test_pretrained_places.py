"""Where weights are fetched to and from: caches, folders, two at once, no network; runs, commands, and the Hub."""

import hashlib
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.store_server import Store
from deit_fast.checkpoint.format import load_checkpoint
from deit_fast.cli.main import main
from deit_fast.convert import pretrained
from deit_fast.convert.pretrained import fetch_weights, open_weights
from deit_fast.runtime.errors import StorageError
from deit_fast.runtime.object_store import MissingError, fetching
from deit_fast.runtime.object_store.uris import DeniedError
from deit_fast.training.start import _other_init
from tests.conftest import ROOT
from tests.published import PAGE, SMALL, bodies, kept, refused, serve_mirror

pytestmark = pytest.mark.usefixtures("toys", "cache")


@pytest.fixture
def store(toys: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    with serve_mirror(monkeypatch, tmp_path) as served:
        yield served


def test_offline(store: Store, cache: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{store.url}/mirror/small.pth"
    assert open_weights(uri).recipe.model.name == "deit3"
    monkeypatch.setenv("DEIT_FAST_WEIGHTS", "http://127.0.0.1:9/mirror")
    place = cache / "weights" / "small.pth"
    assert refused("deit3", StorageError) == (
        "deit3: not in the cache; no network (no connection to 127.0.0.1: [Errno 111] Connection refused): put the "
        f"file at {place}, from http://127.0.0.1:9/mirror/small.pth"
    )
    assert main(["convert", "deit3", str(cache / "w.pth")]) == 74
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


def test_a_mirror_with_a_signature(store: Store, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The query of the mirror's URI is that of each of its files, and no message has it."""
    monkeypatch.setenv("DEIT_FAST_WEIGHTS", f"{store.url}/mirror/?sig=secret")
    assert fetch_weights("deit3") == cache / "weights" / "small.pth"
    assert {(each.path, each.query["sig"]) for each in store.requests} == {("/mirror/small.pth", "secret")}
    (cache / "weights" / "small.pth").unlink()
    (tmp_path / "mirror" / "small.pth").write_bytes(b"<html>")
    assert refused("deit3").startswith(f"deit3: {store.url}/mirror/small.pth: starts with b'<html>'")
    monkeypatch.setenv("DEIT_FAST_WEIGHTS", "http://127.0.0.1:9/mirror?sig=secret")
    assert refused("deit3", StorageError).endswith("small.pth, from http://127.0.0.1:9/mirror/small.pth")


@pytest.mark.parametrize("uri", ["https://", "s3://", "hf:///"])
def test_uris_without_a_host(uri: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(uri) == f"{uri}: expected a URI with the name of a host or a bucket"
    monkeypatch.setenv("DEIT_FAST_WEIGHTS", uri)
    assert refused("deit3") == f"DEIT_FAST_WEIGHTS={uri}: expected a URI, or a folder that is there"


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


def test_two_at_once(store: Store, tmp_path: Path) -> None:
    store.latency = 0.1
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(fetch_weights, ["deit3", "deit3@32", str(SMALL.weights)]))
    size = (tmp_path / "mirror" / "small.pth").stat().st_size
    assert [path.stat().st_size for path in found] == [size] * 3
    assert [each.sent for each in bodies(store)] == [size]


FETCH = """
from tests.published import SMALL
from tests.toys import TOYS
from deit_fast.convert.pretrained import fetch_weights
from deit_fast.zoo import ARCHITECTURES, weights
ARCHITECTURES.update(TOYS)
weights._WEIGHTS.append(SMALL)
print(fetch_weights("deit3").stat().st_size)
"""


@pytest.mark.soak
def test_two_processes_at_once_one_of_them_killed(store: Store, cache: Path, tmp_path: Path) -> None:
    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", FETCH], cwd=ROOT, stdout=subprocess.PIPE)

    size = (tmp_path / "mirror" / "small.pth").stat().st_size
    store.rate = size / 300
    processes = [start(), start()]
    # One process fetches, and the other has seen the file and waits.
    while not bodies(store) or sum(each.range == (0, 0) for each in store.requests) < 2:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)
    before = len(bodies(store))
    processes[0].kill()  # either of them
    processes[0].communicate()
    store.rate = math.inf
    assert int(processes[1].communicate()[0]) == size
    assert before == 1
    assert kept(cache) == ["small.pth"]
    assert sum(each.sent for each in bodies(store)) < 2 * size


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
    assert main(words(folder_data, tmp_path / "a", "--init", "deit3@32")) == 0
    assert json.loads((tmp_path / "a" / "result.json").read_text())["init"] == init
    assert not store.requests
    assert main(words(folder_data, tmp_path / "b", "--init", "deit3_smal_patch16")) == 2
    assert "deit3_smal_patch16: no such checkpoint (did you mean" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_weights_that_a_run_did_not_begin_with_are_named(store: Store) -> None:
    began = SimpleNamespace(init={"weights": "deit3@32:1k"})
    other = f"{store.url}/mirror/x.pth"
    assert _other_init(began, f"{other}?key=secret") == [
        f"--init {other}: not read, since the run began with deit3@32:1k"
    ]
    for same in ("deit3", "deit3@32", str(SMALL.weights), None):
        assert _other_init(began, same) == []
    assert _other_init(SimpleNamespace(init=None), "deit3") == []  # of an older version's checkpoint nobody knows
    assert not store.requests


@pytest.mark.parametrize("init", ["deit3_base_patch16", "deit3_large_patch16@384:21k", "resmlp_big_24", "cait_s36"])
def test_weights_that_cannot_fit_are_not_fetched(
    init: str, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They may be of 2 GB. Those of the same sizes are fetched, and compared with the model then."""
    words = ["--data", str(tmp_path), "--out", str(tmp_path / "run")]
    assert main(["train", "finetune_small", "--init", init, *words]) == 2
    assert capsys.readouterr().err == (
        f"deit-fast: {init}: weights of another architecture: they are of {init.partition('@')[0]}, the model is "
        "deit3_small_patch16\n"
    )
    assert not store.requests
    assert main(["train", "finetune_small", "--init", "deit_small_patch16", *words]) == 2
    assert [each.path for each in store.requests] == ["/mirror/deit_small_patch16_224-cd65a155.pth"]


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
    assert refused("hf://me/new", DeniedError).startswith("hf://me/new: access denied (401); HF_TOKEN or ")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert open_weights("hf://me/toy").file == found.file
    assert {each.headers.get("authorization") for each in store.requests[-1:]} == {"Bearer secret"}


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
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its own attempts
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    assert refused("hf://me/never", StorageError) == (
        "hf://me/never: not in its cache; no network ([Errno 111] Connection refused): give the path of a copy"
    )
