"""Weights in what others put around them: prefixes in any order, training files, averages, whole modules, no head."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from deit_fast.cli.main import main
from deit_fast.convert.detect import load_weights
from deit_fast.runtime.errors import RunError
from tests.oracles import foreign_checkpoints as oracle
from tests.oracles.foreign_checkpoints import DEIT, DEIT3, NANO

AVERAGE = oracle.reference_weights(**NANO, seed=7)


def with_prefix(prefix: str, weights: dict) -> dict:
    return {prefix + name: value for name, value in weights.items()}


def holds(path: Path, weights: dict, ema: bool = False) -> None:
    """The file's weights are these, by the one name that all codebases give the head."""
    found = load_weights(path, ema).tensors
    assert torch.equal(found["head.weight"], weights["head.weight"])
    assert len(found) == len(weights)


@pytest.mark.parametrize("prefix", [
    "module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.", "model._orig_mod.", "net.",
    "model.net.", "_fsdp_wrapped_module.", "backbone.",
])  # fmt: skip
@pytest.mark.parametrize("names", ["facebook", "mmpretrain", "transformers"])
def test_prefixes(prefix: str, names: str, tmp_path: Path) -> None:
    weights = {"facebook": DEIT3, "mmpretrain": oracle.mmpretrain_names(DEIT3),
               "transformers": oracle.transformers_names(DEIT, "vit")}[names]  # fmt: skip
    torch.save({"state_dict": with_prefix(prefix, weights), "epoch": 3}, tmp_path / "a.ckpt")
    expected = DEIT if names == "transformers" else DEIT3
    assert torch.equal(load_weights(tmp_path / "a.ckpt").tensors["head.weight"], expected["head.weight"])


def test_wrappers_around_blocks(tmp_path: Path) -> None:
    inner = {name.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module._orig_mod."): DEIT3[name] for name in DEIT3}
    torch.save({"model": inner}, tmp_path / "a.pth")
    holds(tmp_path / "a.pth", DEIT3)


def test_an_average_of_torchs_has_a_counter(tmp_path: Path) -> None:
    state = AveragedModel(nn.Linear(1, 1)).state_dict()
    assert "n_averaged" in state
    torch.save({"n_averaged": state["n_averaged"]} | with_prefix("module.", DEIT3), tmp_path / "a.pth")
    holds(tmp_path / "a.pth", DEIT3)


def test_an_ema_hook_of_mmengine(tmp_path: Path) -> None:
    """It saves the average as state_dict, and the trained weights, with its counter, as ema_state_dict."""
    trained = {"steps": torch.tensor(9)} | with_prefix("module.", oracle.mmpretrain_names(DEIT3))
    torch.save({"state_dict": oracle.mmpretrain_names(AVERAGE), "ema_state_dict": trained}, tmp_path / "mm.pth")
    holds(tmp_path / "mm.pth", DEIT3)
    holds(tmp_path / "mm.pth", AVERAGE, ema=True)


def test_other_training_files(tmp_path: Path) -> None:
    torch.save({"module": DEIT3, "step": 3, "optimizer": {"state": {0: {"m": torch.zeros(3)}}}}, tmp_path / "ds.pt")
    holds(tmp_path / "ds.pt", DEIT3)
    torch.save({"student": DEIT3, "teacher": AVERAGE}, tmp_path / "two.pt")
    with pytest.raises(RunError, match="has the weights of several models, 'student', 'teacher': expected one"):
        load_weights(tmp_path / "two.pt")
    beside = with_prefix("model.", DEIT3) | {"criterion.weight": torch.ones(10)}
    torch.save({"state_dict": beside}, tmp_path / "loss.ckpt")
    with pytest.raises(RunError, match=r"has 'criterion.weight' beside 'model.\*': expected the weights of one model"):
        load_weights(tmp_path / "loss.ckpt")


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.patch_embed(x)


def test_programs_and_whole_modules(tmp_path: Path) -> None:
    state_dict = r"expected its state dict, which torch.save\(model.state_dict\(\), FILE\) writes"
    torch.jit.save(torch.jit.script(Whole()), tmp_path / "script.pt")
    with pytest.raises(RunError, match=rf"script.pt: is a TorchScript program of [\w.]*Whole: {state_dict}"):
        load_weights(tmp_path / "script.pt")
    torch.export.save(torch.export.export(Whole(), (torch.zeros(1, 2),)), tmp_path / "a.pt2")
    with pytest.raises(RunError, match=rf"a.pt2: is a program of torch.export: {state_dict}"):
        load_weights(tmp_path / "a.pt2")
    for content in (Whole(), {"model": Whole(), "epoch": 1}):
        for new in (True, False):
            torch.save(content, tmp_path / "whole.pt", _use_new_zipfile_serialization=new)
            with pytest.raises(RunError, match=rf"holds a whole module \(asks for .*Whole.*\): {state_dict}"):
                load_weights(tmp_path / "whole.pt")


def test_a_file_without_a_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = {name: value for name, value in DEIT3.items() if not name.startswith("head")}
    path = tmp_path / "a.pth"
    torch.save(bare, path)
    (tmp_path / "x.png").touch()
    for words in (["predict", str(path), str(tmp_path / "x.png")], ["convert", str(path), str(tmp_path / "b")],
                  ["evaluate", str(path), "--data", str(tmp_path)]):  # fmt: skip
        assert main(words) == 2
        assert f"deit-fast: {path}: the file has no head: expected one with a head" in capsys.readouterr().err
    assert main(["convert", str(path), str(tmp_path / "c.pth"), "model.num_classes=3"]) == 0
    assert "none" in capsys.readouterr().out
