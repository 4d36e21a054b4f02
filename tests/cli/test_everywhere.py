"""Every command takes the same URIs: what it makes of shards in a store is what it makes of their folder here."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from deit_fast.cli.main import main
from tests.checkpoint.test_durable import LENGTH
from tests.loopback import SCHEMES, Store, place, serve_loopback
from tests.training.test_train import last_weights

pytestmark = pytest.mark.soak


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Store]:
    with serve_loopback(monkeypatch, tmp_path / "store") as store:
        yield store


Told = Callable[..., str]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """What a command prints, which has to succeed."""

    def run(*words: str | Path) -> str:
        status = main([str(word) for word in words])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        return printed.out

    return run


def result_in(printed: str) -> dict[str, Any]:
    return json.loads(printed[printed.index("{\n") :])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("index", [True, False], ids=["index", "no index"])
def test_every_command(scheme: str, index: bool, store: Store, told: Told, folder_data: Path, tmp_path: Path) -> None:
    uri, folder = place(store, scheme)
    uri, folder = f"{uri}/data", folder / "data"
    told("data", "shard", folder_data, folder, "--per-shard", "20", "--workers", "1")
    if not index:
        for path in folder.glob("*.index.*"):
            path.unlink()
    listed = scheme != "http" or index
    data, val = (uri, uri) if listed else (f"{uri}/train-{{000000..000004}}.tar", f"{uri}/val-{{000000..000001}}.tar")

    for place_of, out in ((folder, "here"), (data, "there")):
        named = ["--val", val] if place_of == data and not listed else []
        told("train", "demo_pretrain", "--data", place_of, "--out", tmp_path / out, *named, *LENGTH)
    here, there = last_weights(tmp_path / "here"), last_weights(tmp_path / "there")
    assert all(torch.equal(here[name], there[name]) for name in here)

    checkpoint = tmp_path / "here" / "checkpoints" / "last.pt"
    scores = [result_in(told("evaluate", checkpoint, "--data", each, "--json")) for each in (folder, val)]
    for score in scores:
        del score["data"], score["images_per_second"], score["minutes"]
    assert scores[0] == scores[1]

    checked = [told("data", "check", each).partition(", train:")[2].split("\n")[:5] for each in (folder, data)]
    assert checked[0] == checked[1]
    assert checked[0][0].startswith(" 96 images of 3 classes")

    for each, name in ((folder, "here.png"), (data, "there.png")):
        told("data", "preview", "demo_pretrain", "--data", each, "--out", tmp_path / name)
    assert (tmp_path / "here.png").read_bytes() == (tmp_path / "there.png").read_bytes()

    for each, name in ((f"{folder}/train-*.tar", "a"), (data, "b")):
        told("data", "shard", each, tmp_path / name, "--workers", "1", "--per-shard", "30")
    for path in (tmp_path / "a").glob("train-*.tar"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert len(list((tmp_path / "b").glob("train-*.tar"))) == 4
