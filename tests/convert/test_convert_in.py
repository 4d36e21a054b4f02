"""Every foreign checkpoint, written by an independent writer, computes in our model what it computed at home."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from deit_fast.convert.detect import load_weights
from deit_fast.convert.fit import load_fitted
from deit_fast.convert.names.facebook import to_facebook
from deit_fast.models.build import build_model
from deit_fast.runtime.errors import RunError
from tests.oracles import foreign_checkpoints as oracle
from tests.oracles.foreign_checkpoints import DEIT, DEIT3, DISTILLED, NANO

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
MODELS = {
    "deit3_nano_patch4": (DEIT3, 4),
    "deit_tiny_patch16": (DEIT, 3),
    "deit_tiny_distilled_patch16": (DISTILLED, 3),
}


def prefixed(weights: dict) -> dict:
    return {f"module.{name}": value for name, value in weights.items()}


def our_logits(path: Path, ema: bool = False) -> tuple[torch.Tensor, str]:
    weights = load_weights(path, ema)
    model = build_model(weights.recipe.model).eval()
    assert load_fitted(model, weights.tensors) == []
    with torch.no_grad():
        return model(IMAGES), f"{weights.recipe.model.name} of {weights.source}"


def close(logits: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.std() > 0.1  # or the comparison would say nothing
    torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=1e-5)


WRITERS: dict[str, Callable[[Path, dict], object]] = {
    "facebook-model": lambda path, weights: torch.save({"model": weights}, path),
    "facebook-bare": lambda path, weights: torch.save(weights, path),
    "facebook-legacy": lambda path, weights: torch.save({"model": weights}, path, _use_new_zipfile_serialization=False),
    "facebook-parallel": lambda path, weights: torch.save({"model": prefixed(weights)}, path),
    "facebook-training": lambda path, weights: oracle.write_training_file(path, weights, weights),
    "mmpretrain": lambda path, weights: torch.save(
        {"state_dict": oracle.mmpretrain_names(weights), "meta": {"mmpretrain_version": "1.2.0", "cfg": "a = 1"}}, path
    ),
    "passl": lambda path, weights: oracle.write_pdparams(path, weights, half=False, named=False),
    "passl-named": lambda path, weights: oracle.write_pdparams(path, weights, half=False, named=True),
    "passl-protocol-2": lambda path, weights: oracle.write_pdparams(path, weights, half=False, named=False, protocol=2),
    "passl-protocol-5": lambda path, weights: oracle.write_pdparams(path, weights, half=False, named=False, protocol=5),
    "transformers": lambda path, weights: save_file(oracle.transformers_names(weights, "deit"), path),
}  # fmt: skip
SOURCES = {
    "facebook": "facebookresearch/deit",
    "mmpretrain": "mmpretrain",
    "passl": "PASSL",
    "transformers": "transformers",
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("writer", WRITERS)
def test_logits_are_the_writers(writer: str, name: str, tmp_path: Path) -> None:
    if writer == "transformers" and name.startswith("deit3"):
        pytest.skip("transformers has no LayerScale in its ViT")
    weights, heads = MODELS[name]
    path = tmp_path / "anything.bin"  # the content says what it is
    WRITERS[writer](path, weights)
    logits, found = our_logits(path)
    close(logits, oracle.reference_logits(weights, IMAGES, heads))
    assert found.startswith(f"{name} of {SOURCES[writer.split('-')[0]]}")


def test_deit3_jax(tmp_path: Path) -> None:
    tree = oracle.jax_tree(128, 4, 4, 4, 8, 10)
    (tmp_path / "last.msgpack").write_bytes(oracle.flax_bytes(tree))
    logits, found = our_logits(tmp_path / "last.msgpack")
    close(logits, torch.from_numpy(oracle.jax_logits(tree, IMAGES.permute(0, 2, 3, 1).numpy())))
    assert found == "deit3_nano_patch4 of deit3-jax"
    assert load_weights(tmp_path / "last.msgpack").recipe.model.activation == "gelu_tanh"


def test_the_two_oracles_agree_on_the_tanh(tmp_path: Path) -> None:
    """Else a wrong GELU in one of them would pass for the converter's."""
    tree = oracle.jax_tree(128, 4, 4, 4, 8, 10)
    (tmp_path / "x").write_bytes(oracle.flax_bytes(tree))
    named = to_facebook(load_weights(tmp_path / "x").tensors)
    expected = torch.from_numpy(oracle.jax_logits(tree, IMAGES.permute(0, 2, 3, 1).numpy()))
    torch.testing.assert_close(oracle.reference_logits(named, IMAGES, 4, "tanh"), expected, atol=1e-9, rtol=1e-9)
    assert (oracle.reference_logits(named, IMAGES, 4) - expected).abs().max() > 1e-5


def test_half_precision_arrays(tmp_path: Path) -> None:
    oracle.write_pdparams(tmp_path / "o2.pdparams", DEIT, half=True, named=False)
    logits, _ = our_logits(tmp_path / "o2.pdparams")
    close(logits, oracle.reference_logits({k: v.half() for k, v in DEIT.items()}, IMAGES, 3))


def test_moving_averages(tmp_path: Path) -> None:
    average = oracle.reference_weights(**NANO, seed=7)
    oracle.write_training_file(tmp_path / "fb.pth", DEIT3, average)
    torch.save({"state_dict": DEIT3, "state_dict_ema": average, "arch": "x"}, tmp_path / "timm.tar")
    # mmengine's EMAHook saves the average as state_dict, and what it averages as ema_state_dict.
    torch.save({"state_dict": oracle.mmpretrain_names(average), "meta": {},
                "ema_state_dict": prefixed(oracle.mmpretrain_names(DEIT3))}, tmp_path / "mm.pth")  # fmt: skip
    for name in ("fb.pth", "timm.tar", "mm.pth"):
        close(our_logits(tmp_path / name, ema=True)[0], oracle.reference_logits(average, IMAGES, 4))
    torch.save({"model": DEIT3}, tmp_path / "none.pth")
    with pytest.raises(RunError, match="expected a moving average, but the file has none"):
        load_weights(tmp_path / "none.pth", ema=True)


def back_again(path: Path, foreign: dict[str, torch.Tensor]) -> None:
    """What was read and renamed to the reference's names is what was written."""
    back = to_facebook(load_weights(path).tensors)
    assert back.keys() == foreign.keys()
    assert all(torch.equal(back[name], value) for name, value in foreign.items())


def test_parallel_blocks(tmp_path: Path) -> None:
    weights = oracle.reference_weights(384, 18, 16, 2, 10, parallel=True)
    torch.save({"model": weights}, tmp_path / "x.pth")
    logits, found = our_logits(tmp_path / "x.pth")
    assert found == "deit3_small_18x2_patch16 of facebookresearch/deit"
    close(logits, oracle.reference_logits(weights, IMAGES, 6))
    back_again(tmp_path / "x.pth", weights)


def test_cait(tmp_path: Path) -> None:
    """The reference's names are timm's, behind DistributedDataParallel's prefix."""
    torch.manual_seed(0)
    theirs = timm.create_model("cait_xxs24_224", img_size=32, num_classes=10).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.save({"model": prefixed(theirs.state_dict())}, tmp_path / "S.pth")
    logits, found = our_logits(tmp_path / "S.pth")
    assert found.startswith("cait_xxs24 of facebookresearch/deit")
    assert torch.equal(logits, theirs(IMAGES))
    back_again(tmp_path / "S.pth", theirs.state_dict())


def test_resmlp(tmp_path: Path) -> None:
    """A bare dictionary with the names of resmlp_models.py, mapped here by hand."""
    torch.manual_seed(0)
    theirs = timm.create_model("resmlp_12_224", img_size=32, num_classes=10).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    foreign = {}
    for name, value in theirs.state_dict().items():
        for new, old in (("stem.", "patch_embed."), ("linear_tokens.", "attn."), ("mlp_channels.", "mlp."),
                         (".ls1", ".gamma_1"), (".ls2", ".gamma_2")):  # fmt: skip
            name = name.replace(new, old)
        foreign[name] = value.reshape(-1) if name.endswith(("alpha", "beta")) else value
    assert foreign["blocks.0.norm1.alpha"].shape == (384,)
    torch.save(foreign, tmp_path / "resmlp_12_no_dist.pth")
    logits, found = our_logits(tmp_path / "resmlp_12_no_dist.pth")
    assert found == "resmlp_12 of facebookresearch/deit"
    assert torch.equal(logits, theirs(IMAGES))
    back_again(tmp_path / "resmlp_12_no_dist.pth", foreign)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_timm(tmp_path: Path, suffix: str) -> None:
    model = timm.create_model("deit3_small_patch16_224", img_size=32, num_classes=10, init_values=0.5).eval()
    path = tmp_path / f"model.{suffix}"
    torch.save(model.state_dict(), path) if suffix == "pth" else save_file(model.state_dict(), path)
    logits, found = our_logits(path)
    assert torch.equal(logits, model(IMAGES))
    assert found.startswith("deit3_small_patch16")


def test_vit_names_of_transformers_with_a_pooler(tmp_path: Path) -> None:
    renamed = oracle.transformers_names(DEIT, "vit")
    renamed |= {"vit.pooler.dense.weight": torch.zeros(192, 192), "vit.pooler.dense.bias": torch.zeros(192)}
    save_file(renamed, tmp_path / "model.safetensors")
    close(our_logits(tmp_path / "model.safetensors")[0], oracle.reference_logits(DEIT, IMAGES, 3))


def test_a_class_slot_with_layer_scale_is_deit3(tmp_path: Path) -> None:
    """What deit3-jax's own converter writes for torch."""
    weights = oracle.reference_weights(**NANO, slots=1)
    renamed = {k.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma"): v for k, v in weights.items()}
    torch.save(renamed, tmp_path / "x.pth")
    loaded = load_weights(tmp_path / "x.pth")
    model = build_model(loaded.recipe.model).eval()
    assert [change.done for change in load_fitted(model, loaded.tensors)] == ["folded"]
    close(model(IMAGES).detach(), oracle.reference_logits(weights, IMAGES, 4))


def test_numpy_scalars_and_mmengine_history_are_read_over(tmp_path: Path) -> None:
    class HistoryBuffer:
        def __init__(self) -> None:
            self._log_history = np.arange(3.0)
            self._statistics_methods = {"min": HistoryBuffer.min}

        def min(self) -> None: ...

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = "mmengine.logging.history_buffer", "HistoryBuffer"
    HistoryBuffer.min.__qualname__ = "HistoryBuffer.min"
    HistoryBuffer.min.__module__ = "mmengine.logging.history_buffer"
    import sys
    from types import ModuleType

    module = ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    names = ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer")
    sys.modules.update(dict.fromkeys(names, module))
    try:
        torch.save({"state_dict": oracle.mmpretrain_names(DEIT3), "meta": {"best": np.float64(0.5), "n": np.int64(2)},
                    "message_hub": {"log_scalars": {"loss": HistoryBuffer()}}}, tmp_path / "x.pth")  # fmt: skip
    finally:
        for name in names:
            del sys.modules[name]
    close(our_logits(tmp_path / "x.pth")[0], oracle.reference_logits(DEIT3, IMAGES, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {k: v for k, v in w.items() if not k.startswith("patch")}, "expected the weights of a model"),
        (lambda w: w | {"pos_embed": torch.zeros(1, 40, 128)}, "40 positions"),
        (
            lambda w: {k: v for k, v in w.items() if ".3." not in k},
            "depth=3, patch_size=4.*: no such entry",
        ),
        (lambda w: w | {"extra": 3}, "'extra' of type int"),
    ],
)
def test_weights_that_fit_nothing_say_what_they_are(tmp_path: Path, change: Callable, message: str) -> None:
    torch.save({"model": change(DEIT3)}, tmp_path / "x.pth")
    with pytest.raises(RunError, match=message):
        load_weights(tmp_path / "x.pth")


def test_another_number_of_heads_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.msgpack").write_bytes(oracle.flax_bytes(oracle.jax_tree(128, 4, 8, 4, 8, 10)))
    with pytest.raises(RunError, match="has 8 attention heads: expected 4, as deit3_nano_patch4 has"):
        load_weights(tmp_path / "x.msgpack")
