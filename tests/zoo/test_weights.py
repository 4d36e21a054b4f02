"""Names of published weights against timm's registry, mmpretrain's metafiles and the reference's lists of files."""

import pytest
from timm.models import _registry as timm_registry

from deit_fast.cli.main import main
from deit_fast.runtime.errors import RecipeError, RunError
from deit_fast.zoo import PUBLISHED, check_given, find_weights_row, published_hash, published_row

FACEBOOK = "https://dl.fbaipublicfiles.com/deit/"
WEIGHTS = [row for row in PUBLISHED if row.weights]
# open-mmlab/mmpretrain, configs/{deit,deit3}/metafile.yml: the names of weights that were converted, and from what.
MMPRETRAIN = {
    "deit-tiny-distilled_3rdparty_pt-4xb256_in1k": "deit_tiny_distilled_patch16_224-b40b3cf7.pth",
    "deit-small-distilled_3rdparty_pt-4xb256_in1k": "deit_small_distilled_patch16_224-649709d9.pth",
    "deit-base_3rdparty_pt-16xb64_in1k": "deit_base_patch16_224-b5f2ef4d.pth",
    "deit-base-distilled_3rdparty_pt-16xb64_in1k": "deit_base_distilled_patch16_224-df68dfff.pth",
    "deit-base_3rdparty_ft-16xb32_in1k-384px": "deit_base_patch16_384-8de9b5d1.pth",
    "deit-base-distilled_3rdparty_ft-16xb32_in1k-384px": "deit_base_distilled_patch16_384-d0272ac0.pth",
    "deit3-small-p16_3rdparty_in1k": "deit_3_small_224_1k.pth",
    "deit3-small-p16_3rdparty_in1k-384px": "deit_3_small_384_1k.pth",
    "deit3-small-p16_in21k-pre_3rdparty_in1k": "deit_3_small_224_21k.pth",
    "deit3-small-p16_in21k-pre_3rdparty_in1k-384px": "deit_3_small_384_21k.pth",
    "deit3-medium-p16_3rdparty_in1k": "deit_3_medium_224_1k.pth",
    "deit3-medium-p16_in21k-pre_3rdparty_in1k": "deit_3_medium_224_21k.pth",
    "deit3-base-p16_3rdparty_in1k": "deit_3_base_224_1k.pth",
    "deit3-base-p16_3rdparty_in1k-384px": "deit_3_base_384_1k.pth",
    "deit3-base-p16_in21k-pre_3rdparty_in1k": "deit_3_base_224_21k.pth",
    "deit3-base-p16_in21k-pre_3rdparty_in1k-384px": "deit_3_base_384_21k.pth",
    "deit3-large-p16_3rdparty_in1k": "deit_3_large_224_1k.pth",
    "deit3-large-p16_3rdparty_in1k-384px": "deit_3_large_384_1k.pth",
    "deit3-large-p16_in21k-pre_3rdparty_in1k": "deit_3_large_224_21k.pth",
    "deit3-large-p16_in21k-pre_3rdparty_in1k-384px": "deit_3_large_384_21k.pth",
    "deit3-huge-p14_3rdparty_in1k": "deit_3_huge_224_1k.pth",
    "deit3-huge-p14_in21k-pre_3rdparty_in1k": "deit_3_huge_224_21k_v1.pth",
}
# facebookresearch/deit README_patchconvnet.md, whose models timm lacks.
PATCHCONVNET = {
    "S60": "s60_224_1k.pth",
    "patchconvnet_s60:21k": "s60_224_21k.pth",
    "S60@384": "s60_384_21k.pth",
    "S60@512": "s60_512_21k.pth",
    "S120": "s120_224_1k.pth",
    "B60": "b60_224_1k.pth",
    "B60:21k": "b60_224_21k.pth",
    "B60@384:21k": "b60_384_21k.pth",
    "B120": "b120_224_1k.pth",
    "B120@224px:21k": "b120_224_21k.pth",
    "patchconvnet_b120@384": "b120_384_21k.pth",
    "S60_multi": "s60_multi_scratch_1k.pth",
    "S60_multi:from_s60": "s60_multi_finetune_1k.pth",
}
OTHERS = {
    "deit3_small_patch16": "deit_3_small_224_1k.pth",
    "deit3_small_patch16:21k": "deit_3_small_224_21k.pth",
    "deit3_small_patch16@384:21k": "deit_3_small_384_21k.pth",
    "deit_base_patch16_LS": "deit_3_base_224_1k.pth",
    "deit_base_patch16_LS@384": "deit_3_base_384_1k.pth",
    "deit3_base_patch16_384:21k": "deit_3_base_384_21k.pth",
    "cait_m48": "M48_448.pth",
    "cait_s36": "S36_384.pth",
    "resmlpB_24:distilled": "resmlpB_24_dist.pth",
}


def test_timms_names_are_its_addresses() -> None:
    """With and without a tag: of timm's configurations the one without is that of the default tag."""
    prefixes = ("deit_", "deit3_", "cait_", "resmlp_")
    theirs = {
        name: config.url
        for name, config in timm_registry._model_pretrained_cfgs.items()
        if name.startswith(prefixes) and config.url
    }
    assert len(theirs) > 60
    found = {name: find_weights_row(name) for name in theirs}
    assert {name: row and row.weights for name, row in found.items()} == theirs
    reached = {row.weights for row in found.values() if row is not None}
    assert {row.weights for row in WEIGHTS if not row.name.startswith("patchconvnet_")} == reached


def test_timms_former_names_are_what_it_takes_them_for() -> None:
    """timm's models before 0.9 had no tags. The names that it still takes are in its list of deprecated models."""
    former = {
        name: now
        for name, now in timm_registry._deprecated_models.items()
        if name.startswith(("deit", "cait", "resmlp"))
    }
    assert len(former) > 12
    for name, now in former.items():
        dino = name.endswith("_dino")  # timm's new name for these lacks its tag
        expected = find_weights_row(f"{now}.fb_dino" if dino and "." not in now else now)
        assert expected is not None
        assert find_weights_row(name) is expected


@pytest.mark.parametrize(("name", "file"), {**MMPRETRAIN, **PATCHCONVNET, **OTHERS}.items())
def test_other_names(name: str, file: str) -> None:
    row = find_weights_row(name)
    assert row is not None
    assert row.weights == FACEBOOK + file


def test_each_row_has_a_name_and_a_file_of_its_own() -> None:
    names = [str(row.weights_name) for row in WEIGHTS]
    assert len({row.weights_file for row in WEIGHTS}) == len(set(names)) == len(WEIGHTS) == 58
    for name, row in zip(names, WEIGHTS, strict=True):
        assert find_weights_row(name) is find_weights_row(str(row.weights)) is row
        assert name == f"{row.name}@{row.resolution}:{row.tag}"
    assert all(row.weights_name is row.weights_file is row.tag is None for row in PUBLISHED if row.weights is None)


def test_published_hashes() -> None:
    """Facebook's DeiT files and mmpretrain's have the beginning of their SHA-256 in their names."""
    assert {row.name.split("_")[0] for row in WEIGHTS if published_hash(str(row.weights_file))} == {"deit"}
    assert sum(published_hash(str(row.weights_file)) is not None for row in WEIGHTS) == 8
    for file, expected in {
        "deit_tiny_patch16_224-a1311bcf.pth": "a1311bcf",
        "deit3-small-p16_3rdparty_in1k_20221008-0f7c70cf.pth": "0f7c70cf",
        "regnety_160-a5fe301d.pth": "a5fe301d",
        "a-0123456789abcdef.safetensors": "0123456789abcdef",
        "deit_3_small_224_1k.pth": None,
        "model-20221008.pth": None,
        "vit-base.pth": None,
        "vit-decade.pth": None,
        "deit-small-p16.pth": None,
    }.items():
        assert published_hash(file) == expected, file


@pytest.mark.parametrize(("name", "words"), [
    ("deit3_tiny_patch16", "deit3_tiny_patch16: expected a model with published weights"),
    ("deit_giant_40_patch14_LS", "and deit3_giant_40_patch14 has none"),
    ("deit3_small_patch16@512", "expected deit3_small_patch16@224:1k or deit3_small_patch16@224:21k or "),
    ("deit3_small_patch16:22k", "deit3_small_patch16:22k: expected deit3_small_patch16@224:1k"),
    ("deit3_medium_patch16@384", "expected deit3_medium_patch16@224:1k or deit3_medium_patch16@224:21k, the"),
    ("deit3_small_patch16_224.augreg_in1k", "deit3_small_patch16_224.augreg_in1k: expected deit3_small"),
])  # fmt: skip
def test_weights_that_were_not_published(name: str, words: str) -> None:
    with pytest.raises(RecipeError) as error:
        check_given(name)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_name(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given in ("absent.pth", "no/such/path", "deit3_small_patch16.pth.tar", "deit3_small_patch16@", ":1k"):
        assert find_weights_row(given) is None
        with pytest.raises(RunError, match="no such checkpoint"):
            check_given(given)
    for given, near in {
        "deit3_smal_patch16": "(did you mean 'deit3_small_patch16'?)",
        "deit3-small-p16_3rdparty_in22k": "(did you mean 'deit3-small-p16_3rdparty_in1k'?)",
        "timm/deit3_small_patch16_224.fb_in1k": "(did you mean 'hf://timm/deit3_small_patch16_224.fb_in1k'?)",
        "hf-hub:me/vit": "(did you mean 'hf://me/vit'?)",
        "hf_hub:me/vit": "(did you mean 'hf://me/vit'?)",
        "deit_3_small_384_21k.pth": "(did you mean 'deit3_small_patch16@384:21k'?)",
    }.items():
        with pytest.raises(RunError) as error:
            check_given(given)
        assert str(error.value) == f"{given}: no such checkpoint {near}"
    check_given("https://example.org/w.pth")
    (tmp_path / "deit3_small_patch16").mkdir()  # a run's folder, perhaps: what is there is meant
    check_given("deit3_small_patch16")
    assert published_row("deit3_small_patch16") is None
    assert published_row("deit3_small_patch16@224:1k") is not None


def test_the_zoo_shows_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "deit3_small_patch16"]) == 0
    shown = capsys.readouterr().out
    for name in ("@224:1k", "@224:21k", "@384:1k", "@384:21k"):
        assert f" deit3_small_patch16{name} " in shown
