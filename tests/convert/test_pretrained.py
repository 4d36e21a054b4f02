"""Weights by name and by URI from a server on loopback: fetched once, whole, looked at, and kept; or one line."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import deit_fast
from benchmarks.store_server import Store
from benchmarks.store_state import Request
from deit_fast.convert import pretrained
from deit_fast.convert.detect import Weights
from deit_fast.convert.pretrained import fetch_weights, open_weights
from deit_fast.recipe.sections import Model
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RunError, StorageError
from deit_fast.runtime.object_store import ChangedError, MissingError
from deit_fast.zoo import PUBLISHED, Published, weights
from tests.published import PAGE, SMALL, bodies, file_of, kept, refused, serve_mirror, state

pytestmark = pytest.mark.usefixtures("toys", "cache")


@pytest.fixture
def store(toys: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    with serve_mirror(monkeypatch, tmp_path) as served:
        yield served


def test_every_entry_with_weights_is_held_to_its_architecture() -> None:
    def of(name: str, size: int) -> Weights:
        section = Model(name=name, image_size=size, num_classes=1000)
        recipe = get_recipe("demo_pretrain").derive(model=section.model_dump())
        return Weights({}, recipe, None, file=Path("w.pth"))

    rows = [row for row in PUBLISHED if row.weights]
    assert len(rows) == 58
    for row in rows:
        assert open_row(of(row.name, row.resolution), row) == row.resolution
        other = "resmlp_12" if row.name != "resmlp_12" else "resmlp_24"
        with pytest.raises(RunError) as error:
            open_row(of(other, row.resolution), row)
        expected = f"expected {row.name} at {row.resolution} px, as {row.weights_name} is"
        assert str(error.value) == f"w.pth: has weights of {other}: {expected}"
    for name in ("deit3_small_patch16", "deit_tiny_distilled_patch16", "cait_xxs24", "resmlp_12"):
        row = next(row for row in rows if row.name == name)
        with pytest.raises(RunError, match=rf"has weights at {row.resolution - 32} px: expected {name} at "):
            open_row(of(name, row.resolution - 32), row)
    row = next(row for row in rows if row.weights_name == "patchconvnet_s60@384:21k")
    assert open_row(of(row.name, 224), row) == 384  # its weights are the same at any resolution: the name says it


def open_row(found: Weights, row: Published) -> int:
    return pretrained._as_published(found, row).recipe.model.image_size


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
    store.fault = lambda request: ["", "cut", "drop"][min(len(store.requests) - 1, 2)]
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
    assert refused("deit3").startswith(f"deit3: {address}: starts with b'<!DOCTYPE': expected a file of ")
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
