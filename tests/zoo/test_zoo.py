"""Every entry of the zoo is the published model: its parameters, its operations, timm's state dict, its names."""

import dataclasses
import functools
import json
import re
import subprocess
import sys
from unittest import mock

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import deit_fast
from deit_fast.cli.main import main
from deit_fast.infer.create import create_model
from deit_fast.recipe.sections import Model
from deit_fast.runtime.errors import RecipeError
from deit_fast.zoo import ARCHITECTURES, PUBLISHED, Architecture, find_architecture, find_family, list_models
from deit_fast.zoo.architectures import ALIASES
from tests.conftest import ROOT
from tests.toys import TOYS

# Counted on the reference's own code (millions of parameters, billions of multiply-accumulates), by its names; the
# digits given are the digits compared. PatchConvNet's are from its README, which counts norms as operations too.
REFERENCE = {
    ("deit_tiny_patch16_LS", 224): ("5.72", "1.25"),
    ("deit_small_patch16_LS", 224): ("22.06", "4.60"),
    ("deit_small_patch16_LS", 384): ("22.21", "15.49"),
    ("deit_medium_patch16_LS", 224): ("38.85", "7.99"),
    ("deit_base_patch16_LS", 224): ("86.59", "17.56"),
    ("deit_base_patch16_LS", 384): ("86.88", "55.48"),
    ("deit_large_patch16_LS", 224): ("304.37", "61.55"),
    ("deit_large_patch16_LS", 384): ("304.76", "191.07"),
    ("deit_huge_patch14_LS", 224): ("632.13", "167.30"),
    ("deit_huge_patch14_52_LS", 224): ("1025.73", "271.7"),
    ("deit_huge_patch14_26x2_LS", 224): ("1025.73", "271.7"),
    ("deit_Giant_48x2_patch14_LS", 224): ("3195.2", "841"),
    ("deit_giant_40x2_patch14_LS", 224): ("1907.5", "504"),
    ("deit_Giant_48_patch14_LS", 224): ("1599.2", "421"),
    ("deit_giant_40_patch14_LS", 224): ("955.0", "252"),
    ("deit_small_patch16_36_LS", 224): ("64.67", "13.7"),
    ("deit_small_patch16_36", 224): ("64.64", "13.7"),
    ("deit_small_patch16_18x2_LS", 224): ("64.67", "13.7"),
    ("deit_small_patch16_18x2", 224): ("64.64", "13.7"),
    ("deit_base_patch16_18x2_LS", 224): ("256.73", "52.5"),
    ("deit_base_patch16_18x2", 224): ("256.68", "52.5"),
    ("deit_base_patch16_36x1_LS", 224): ("256.73", "52.5"),
    ("deit_base_patch16_36x1", 224): ("256.68", "52.5"),
    ("deit_tiny_patch16_224", 224): ("5.717", "1.25"),
    ("deit_small_patch16_224", 224): ("22.051", "4.60"),
    ("deit_base_patch16_224", 224): ("86.568", "17.56"),
    ("deit_tiny_distilled_patch16_224", 224): ("5.911", "1.26"),
    ("deit_small_distilled_patch16_224", 224): ("22.436", "4.62"),
    ("deit_base_distilled_patch16_224", 224): ("87.338", "17.66"),
    ("deit_base_patch16_384", 384): ("86.859", "55.48"),
    ("deit_base_distilled_patch16_384", 384): ("87.630", "55.59"),
    ("cait_XXS24_224", 224): ("11.96", "2.5"),
    ("cait_XXS24", 384): ("12.03", "9.6"),
    ("cait_XXS36_224", 224): ("17.30", "3.8"),
    ("cait_XXS36", 384): ("17.37", "14.3"),
    ("cait_XS24", 384): ("26.67", "19.2"),
    ("cait_S24_224", 224): ("46.92", "9.3"),
    ("cait_S24", 384): ("47.06", "32.1"),
    ("cait_S36", 384): ("68.37", "47.9"),
    ("cait_M36", 384): ("271.2", "172.9"),
    ("cait_M48", 448): ("356.5", "329.1"),
    ("resmlp_12", 224): ("15.35", "3.0"),
    ("resmlp_24", 224): ("30.02", "6.0"),
    ("resmlp_36", 224): ("44.69", "8.9"),
    ("resmlpB_24", 224): ("129.1", "100.2"),
    ("S60", 224): ("25.2", "4.0"),
    ("S120", 224): ("47.7", "7.5"),
    ("B60", 224): ("99.4", "15.8"),
    ("B120", 224): ("188.6", "29.8"),
    ("S60_multi", 224): ("25.6", "5.3"),
}


@functools.cache
def built(name: str, size: int) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, img_size=size).eval()


# What the READMEs of facebookresearch/deit print beside them, as they print it.
PRINTED = {
    ("deit3_small_patch16", 224): ("22.0", "4.6"),
    ("deit3_medium_patch16", 224): ("38.8", "8.0"),
    ("deit3_base_patch16", 224): ("86.6", "17.5"),
    ("deit3_base_patch16", 384): ("86.9", "55.5"),
    ("deit3_large_patch16", 224): ("304.4", "61.6"),
    ("deit3_large_patch16", 384): ("304.8", "191.2"),
    ("deit3_huge_patch14", 224): ("632.1", "167.4"),
    ("deit_tiny_patch16", 224): ("5", None),
    ("deit_small_patch16", 224): ("22", None),
    ("deit_base_patch16", 224): ("86", None),
    ("deit_tiny_distilled_patch16", 224): ("6", None),
    ("deit_small_distilled_patch16", 224): ("22", None),
    ("deit_base_distilled_patch16", 224): ("87", None),
    ("deit_base_patch16", 384): ("87", None),
    ("deit_base_distilled_patch16", 384): ("88", None),
    ("cait_xs24", 384): ("27", "19.3"),
    ("cait_s24", 224): ("47", "9.4"),
    ("cait_s24", 384): ("47", "32.2"),
    ("cait_s36", 384): ("68", "48.0"),
    ("cait_m36", 384): ("271", "173.3"),
    ("cait_m48", 448): ("356", "329.6"),
    ("resmlp_12", 224): ("15", "3"),
    ("resmlp_24", 224): ("30", "6"),
    ("resmlp_big_24", 224): ("129", "100"),
    ("patchconvnet_s60", 224): ("25.2", "4.0"),
    ("patchconvnet_s60", 384): ("25.2", "11.8"),
    ("patchconvnet_s60", 512): ("25.2", "20.9"),
    ("patchconvnet_s120", 224): ("47.7", "7.5"),
    ("patchconvnet_b60", 224): ("99.4", "15.8"),
    ("patchconvnet_b60", 384): ("99.4", "46.5"),
    ("patchconvnet_b120", 224): ("188.6", "29.9"),
    ("patchconvnet_b120", 384): ("188.6", "87.7"),
    ("patchconvnet_s60_multi", 224): ("25.6", "5.3"),
}
# Where they do not count that model: ViT-S at 384 px has its parameters of 224, ResMLP-36 another model's figures.
MISPRINTED = {("deit3_small_patch16", 384): ("22.0", "15.5"), ("resmlp_36", 224): ("116", "23")}


def sizes(architecture: Architecture, depth: int, size: int) -> tuple[int, int]:
    """Parameters, and operations of one image, counted as they are run."""
    with mock.patch.dict(ARCHITECTURES, {"counted": dataclasses.replace(architecture, depth=depth)}):
        model = built.__wrapped__("counted", size)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, size, size))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops()


@functools.cache
def counted(name: str, size: int) -> tuple[float, float]:
    """Millions of parameters, billions of multiply-accumulates; blocks are alike, so two depths say all of them."""
    entry = ARCHITECTURES[name]
    params, flops = (
        one + (entry.depth - 1) * (two - one)
        for one, two in zip(sizes(entry, 1, size), sizes(entry, 2, size), strict=True)
    )
    return params / 1e6, flops / 2e9


def digits(text: str) -> int:
    return len(text.partition(".")[2])


@pytest.mark.parametrize("name", ["deit3_tiny_patch16", "deit_tiny_distilled_patch16", "cait_xxs24", "resmlp_12"])
def test_blocks_are_alike(name: str) -> None:
    params, flops = sizes(ARCHITECTURES[name], ARCHITECTURES[name].depth, 224)
    assert counted(name, 224) == (params / 1e6, flops / 2e9)


@pytest.mark.parametrize(("name", "size"), REFERENCE, ids=lambda each: str(each))
def test_parameters_and_operations_are_the_references(name: str, size: int) -> None:
    params, gmacs = REFERENCE[name, size]
    entry = next(entry for entry, architecture in ARCHITECTURES.items() if architecture is find_architecture(name))
    found_params, found_gmacs = counted(entry, size)
    half_unit = 0.501
    assert found_params == pytest.approx(float(params), abs=half_unit * 10 ** -digits(params))
    assert found_gmacs == pytest.approx(float(gmacs), abs=max(half_unit * 10 ** -digits(gmacs), 0.005 * float(gmacs)))


@pytest.mark.parametrize("row", {(row.name, row.resolution): row for row in PUBLISHED}.values(),
                         ids=lambda row: f"{row.name}@{row.resolution}")  # fmt: skip
def test_the_table_says_what_is_built(row) -> None:
    params, gmacs = counted(row.name, row.resolution)
    assert row.params_m == pytest.approx(params, abs=0.0051)
    assert row.gmacs == pytest.approx(gmacs, abs=0.0051)


def test_printed_figures_are_the_models_but_for_two() -> None:
    for (name, size), (params, gmacs) in (PRINTED | MISPRINTED).items():
        found_params, found_gmacs = counted(name, size)
        # A unit of the last digit, because some cut it off; the READMEs count operations of norms too.
        same = abs(found_params - float(params)) <= 10 ** -digits(params)
        same &= gmacs is None or abs(found_gmacs - float(gmacs)) <= max(10 ** -digits(gmacs), 0.011 * float(gmacs))
        assert same == ((name, size) not in MISPRINTED), (name, size, found_params, found_gmacs)


def test_every_published_model_has_a_row() -> None:
    published = {name for name in ARCHITECTURES if find_family(name).published}
    assert {row.name for row in PUBLISHED} == {name for name in published if "nano" not in name}
    referred = [find_architecture(name) for name, _ in REFERENCE]
    assert {name for name in published if not any(ARCHITECTURES[name] is a for a in referred)} == {
        "deit3_nano_patch4", "deit3_nano_patch8", "patchconvnet_l60", "patchconvnet_l120"
    }  # fmt: skip
    weights = [row.weights for row in PUBLISHED if row.weights]
    assert len(weights) == len(set(weights)) == 58
    assert all(row.source for row in PUBLISHED if row.weights)
    assert {row.source for row in PUBLISHED if row.images_per_second} == {
        "facebookresearch/deit README_revenge.md", "facebookresearch/deit README_patchconvnet.md"}  # fmt: skip


TIMM = [name for name in ALIASES if timm.is_model(name)]


@pytest.mark.parametrize("name", TIMM)
def test_state_dicts_are_timms(name: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name)
    entry, size = ALIASES[name]
    assert theirs.pretrained_cfg["input_size"][-1] == size
    shapes = {key: value.shape for key, value in built(entry, size).state_dict().items()}
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}


def test_addresses_are_timms_where_timm_has_them() -> None:
    known = {
        cfg.url for name in TIMM for tag in timm.list_pretrained(f"{name}.*") for cfg in [timm.get_pretrained_cfg(tag)]
    }
    ours = {row.weights for row in PUBLISHED if row.weights and "/s60" not in row.weights and "/s120" not in row.weights
            and "/b60" not in row.weights and "/b120" not in row.weights}  # fmt: skip
    assert len(known) > 30
    assert ours == known


@pytest.mark.usefixtures("toys")
def test_a_capability_is_what_the_models_have() -> None:
    for name, toy in TOYS.items():
        family, model = find_family(name), built(name, 32)
        attention = [
            key for key, _ in model.named_parameters() if re.match(r"blocks\.\d+\.(attns\.0\.)?attn\.qkv\.", key)
        ]
        assert family.has_attention == bool(attention), name
        assert family.layers_in_order == hasattr(model, "group_matcher"), name
        slots = built(name, 32).state_dict().get("pos_embed", torch.empty(1, 16, 1)).shape[1] - 16
        assert slots == (1 + toy.distilled if family.class_slot else 0), name


def test_names() -> None:
    assert len(TIMM) >= 30
    for name in ALIASES:
        assert Model(name=name, image_size=224).name in ARCHITECTURES
    assert not ALIASES.keys() & ARCHITECTURES.keys()
    with torch.device("meta"):
        assert create_model("deit_base_distilled_patch16_384").pos_embed.shape == (1, 578, 768)
        assert create_model("cait_XXS24").pos_embed.shape == (1, 576, 192)
    for wrong, near in (("deit3_bas_patch16", "deit3_base_patch16"), ("deit_base_patch16_Ls", "deit_base_patch16_LS"),
                        ("cait_xxs24_256", "cait_xxs24_224")):  # fmt: skip
        with pytest.raises(RecipeError, match=rf"^model\.name='{wrong}': expected .*did you mean '{near}'\?\)$"):
            find_architecture(wrong)


def test_patterns() -> None:
    assert deit_fast.list_models("cait_s*") == ["cait_s24", "cait_s36"]
    assert list_models("S60*") == ["patchconvnet_s60", "patchconvnet_s60_multi"]
    assert list_models("*_384")[:2] == ["deit3_small_patch16", "deit3_base_patch16"]
    assert list_models("nothing") == []
    assert list_models() == list(ARCHITECTURES)


def test_command(capsys) -> None:
    assert main(["zoo", "deit3_[bh]*patch1?"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["name", "px"]
    assert lines[1].split()[1:9] == ["224", "86.59", "17.56", "831", "2078", "83.8", "73.6", "ImageNet-1k"]
    huge = next(line for line in lines if line.startswith("deit3_huge_patch14"))
    assert huge.split()[1:8] == ["224", "632.13", "167.30", "112", "6984", "85.2", "75.9"]
    assert main(["zoo", "cait_m48_448", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["resolution"], row["top1"], row["top1_v2"]) == ("cait_m48", 448, 86.5, None)
    assert row["architecture"]["layer_scale"] == 1e-6
    for name in ("resmlp_12@224:dino", "resmlp_12_224.fb_dino", "resmlp_12_224_dino"):  # of weights
        assert main(["zoo", name, "--json"]) == 0
        assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["resmlp_12"] * 3
    assert main(["zoo", "resmlp_21"]) == 2
    assert "did you mean 'resmlp_24'" in capsys.readouterr().err


def test_the_zoo_needs_no_torch() -> None:
    code = "from deit_fast.cli.main import main; main(['zoo']); import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("cait_xxs24", {"drop_path_decay": "linear"}, "model.drop_path_decay='linear': expected 'constant' with "
         "model.name='cait_xxs24', which has no other"),
        ("S60", {"pool": "avg"}, "model.pool='avg': expected 'token' with model.name='patchconvnet_s60'"),
        ("resmlp_12", {"position": "sincos"}, "model.position='sincos': expected 'learned' with model.name="),
        ("resmlp_12", {"layer_scale": None}, "model.layer_scale=null: expected a number or 'auto' with model.name="),
        ("resmlp_12", {"stem": "hmlp"}, "model.stem='hmlp': expected 'patch'"),
        ("deit_tiny_distilled_patch16", {"pool": "avg"}, "model.pool='avg': expected 'token'"),
        ("deit3_huge_patch14", {"stem": "hmlp"}, "model.stem='hmlp': expected 'patch' with model.name="),
        ("deit3_tiny_patch16", {"img_size": 8}, "model.image_size=8: expected at least 16 with model.name="),
        ("deit3_tiny_patch16", {"drop_path": 2.0}, "model.drop_path=2.0: expected less than 1"),
        ("deit3_tiny_patch16", {"pooling": "avg"}, "model.pooling: no such key"),
    ],
)  # fmt: skip
def test_fields_an_architecture_cannot_have_are_refused(name: str, fields: dict, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        create_model(name, **fields)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
