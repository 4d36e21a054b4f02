"""Checkpoints that earlier versions wrote: one of each format's number is read, gone on from and evaluated, or refused
in a line that says what to do."""

from pathlib import Path

import pytest
import torch

from deit_fast.checkpoint.format import load_checkpoint, save_checkpoint
from deit_fast.convert.detect import load_weights
from deit_fast.convert.own_format import FORMAT
from deit_fast.runtime.errors import RunError
from deit_fast.training.run import train
from deit_fast.zoo import ARCHITECTURES
from tests.checkpoint import stored

CPU = torch.device("cpu")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "stored", stored.MODEL)


def test_one_is_stored_of_each_number() -> None:
    found = {path.name for path in stored.FOLDER.glob("*.xz")}
    assert found == {stored.archive(number).name for number in range(1, FORMAT + 1)}, (
        "python -m tests.checkpoint.stored"
    )
    assert all(path.stat().st_size < 16_000 for path in stored.FOLDER.glob("*.xz"))


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("number", range(1, FORMAT + 1))
def test_a_stored_one_goes_on(number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = stored.unpack(number, tmp_path)
    path = run / "checkpoints" / f"step-000000{stored.STEP}.pt"
    raw = torch.load(path, weights_only=True)
    for file in (path, path.with_suffix(".safetensors")):
        weights = load_weights(file)
        assert all(torch.equal(weights.tensors[name], tensor) for name, tensor in raw["model"].items())
    assert load_weights(path).classes == ["class0", "class1"]
    stored.write_images(tmp_path / "images")
    result = train(stored.recipe(), str(tmp_path / "images"), run)
    assert f"resumed from {path} at step {stored.STEP} of {stored.STEPS}" in capsys.readouterr().out
    assert result["step"] == stored.STEPS
    assert not torch.equal(
        load_weights(run / "checkpoints" / "last.pt").tensors["head.weight"], raw["model"]["head.weight"]
    )


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("number", "said"),
    [
        (FORMAT - 1, f"of format {FORMAT - 1}, and this version of deit_fast goes on from {FORMAT}: finish the run "
                     "with the version of deit_fast that wrote it, or start another --out from its weights, "
                     "with --init"),
        (FORMAT + 1, f"of format {FORMAT + 1}, and this version of deit_fast reads {FORMAT}: it needs a newer one"),
        (None, f"expected a deit_fast checkpoint of format {FORMAT}, found none of deit_fast's"),
        ("1", f"expected a deit_fast checkpoint of format {FORMAT}, found none of deit_fast's"),
        (True, f"expected a deit_fast checkpoint of format {FORMAT}, found none of deit_fast's"),
    ],
)  # fmt: skip
def test_other_numbers_are_refused(number: object, said: str, tmp_path: Path) -> None:
    path = stored.unpack(FORMAT, tmp_path) / "checkpoints" / f"step-000000{stored.STEP}.pt"
    content = torch.load(path, weights_only=True)
    torch.save({**content, "format": number}, path)
    for read in (lambda: load_checkpoint(path, CPU), lambda: load_weights(path)):
        with pytest.raises(RunError) as error:
            read()
        assert str(error.value).startswith(f"{path}: {said}")
        assert "\n" not in str(error.value)


@pytest.mark.usefixtures("model")
def test_one_of_another_layout_is_refused(tmp_path: Path) -> None:
    """As the first versions wrote them: without checksums, or without what a run goes on with today."""
    run = stored.unpack(FORMAT, tmp_path)
    stored.write_images(tmp_path / "images")
    path = run / "checkpoints" / f"step-000000{stored.STEP}.pt"
    content = torch.load(path, weights_only=True)
    for key, changed in (("bad_images", None), ("optimizer", {"state": {}, "param_groups": []})):
        state = {name: value for name, value in content.items() if name != key}
        save_checkpoint(path, state if changed is None else {**state, key: changed})
        with pytest.raises(
            RunError, match=r"not of this version's layout .*; finish the run with the version"
        ) as error:
            train(stored.recipe(), str(tmp_path / "images"), run)
        assert "\n" not in str(error.value)
    path.with_suffix(".sha256").unlink()
    for suffix in (".pt", ".safetensors"):
        path.with_suffix(suffix).rename(run / "checkpoints" / f"last{suffix}")
    with pytest.raises(RunError, match=r"expected its checksums beside it, in last\.sha256; .* with --init and its"):
        train(stored.recipe(), str(tmp_path / "images"), run)
    result = train(stored.recipe(), str(tmp_path / "images"), tmp_path / "anew",
                   init=run / "checkpoints" / "last.safetensors")  # fmt: skip
    assert result["step"] == stored.STEPS
