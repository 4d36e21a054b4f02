"""What `deit-fast show` derives from a recipe, against numbers worked out by hand or taken from the sources' logs."""

import pytest
import torch

from deit_fast.cli.show import WIDTH, derive_facts, list_as_text, recipe_as_text
from deit_fast.models.build import build_model
from deit_fast.optim.build import parameter_groups
from deit_fast.recipe.schema import SECTIONS
from deit_fast.recipe.table import RECIPES, get_recipe, list_recipes


def facts(name: str, *words: str, images: int | None = None) -> dict[str, str]:
    return derive_facts(get_recipe(name, words), images)


@pytest.mark.parametrize(
    ("name", "key", "fact"),
    [
        # RASampler: 1,281,167 // 256 * 256 views; its third of the images; 625 steps drop half a batch.
        ("deit3_small_1k_224", "epoch", "1,281,024 views of 427,008 images; 625 steps of 2,048 views"),
        ("deit3_small_1k_224", "run", "500,000 steps, 1,024,000,000 views, 266.4 passes over the images"),
        ("deit_base_1k_224", "epoch", "1,281,024 views of 427,008 images; 1,251 steps of 1,024 views"),
        ("deit3_base_1k_224_ft", "epoch", "1,281,167 images; 2,502 steps of 512 views"),
        (
            "deit3_base_21k_224",
            "training images",
            "13,151,276 (ImageNet-21k, winter 2021; --images N for another number)",
        ),
        ("deit3_base_21k_224", "epoch", "13,151,276 images; 6,421 steps of 2,048 views"),
        ("deit3_base_21k_1k_224_ft", "training images", "1,281,167 (ImageNet-1k; --images N for another number)"),
        ("demo_pretrain", "epoch", "1,437 images; 44 steps of 32 views"),
        ("demo_pretrain", "run", "1,056 steps, 33,792 views, 23.5 passes over the images"),
        ("deit3_small_1k_224", "8 GPUs", "256 views on each"),
        ("passl_deit_base_1k_224_1n8c_fp32", "8 GPUs", "64 views on each, in 2 passes a step"),
        ("deit_base_1k_224", "evaluation", "shorter side to 256 px, centre crop 224 px"),
        ("deit_base_1k_384_ft", "evaluation", "shorter side to 438 px, centre crop 384 px"),
        ("deit3_base_1k_192", "evaluation", "shorter side to 192 px, centre crop 192 px"),
        ("deit3_base_1k_192", "patches", "12 x 12 of 16 px"),
        ("deit3_huge_1k_160", "patches", "11 x 11 of 14 px: 154 px of 160, the rest is not seen"),
        ("deit3_huge_21k_128", "patches", "9 x 9 of 14 px: 126 px of 128, the rest is not seen"),
        ("jax_deit3_huge_1k_154_800ep", "patches", "11 x 11 of 14 px"),
        ("deit3_large_1k_192", "stochastic depth", "0.45 in each of 24 blocks"),
        ("deit3_small_1k_384_ft", "stochastic depth", "none"),
        ("deit_base_1k_384_ft", "stochastic depth", "none, with model.train_mode=false"),
    ],
)
def test_facts(name: str, key: str, fact: str) -> None:
    assert facts(name)[key] == fact


def test_linear_stochastic_depth_is_listed_block_by_block() -> None:
    fact = facts("deit_base_1k_224", "model.drop_path=0.11")["stochastic depth"]
    assert fact == "0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.11 in 12 blocks"


def test_learning_rates_of_the_published_log() -> None:
    """The published ViT-S run's rates; an epoch in which nothing changes is left out after the warmup."""
    table = facts("deit3_small_1k_224", "schedule.reference_epoch_steps=true")["learning rate"].split()
    rates = dict(zip(table[5::2], table[6::2], strict=True))
    assert [rates[str(epoch)] for epoch in range(7)] == [
        "1.00e-06", "1.00e-06", "8.01e-04", "1.60e-03", "2.40e-03", "3.20e-03", "4.00e-03",
    ]  # fmt: skip
    assert list(rates) == [*"0123456", *map(str, range(80, 800, 80)), "760", "792", "last"]
    assert rates["last"] == "1.01e-05"  # the curve at epoch 798, one epoch late
    finetuning = facts("deit3_base_1k_224_ft")["learning rate"].split()
    assert dict(zip(finetuning[5::2], finetuning[6::2], strict=True)) == {
        "0": "1.00e-06", "1": "2.80e-06", "2": "4.60e-06", "3": "6.40e-06", "4": "8.20e-06", "5": "1.00e-05",
        "6": "1.00e-05", "last": "1.00e-05",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["deit3_small_patch16", "deit_tiny_distilled_patch16", "cait_xxs24", "resmlp_12"])
def test_layer_decay_tells_what_the_embeddings_get(name: str) -> None:
    recipe = get_recipe("deit3_small_1k_224", ["optim.layer_decay=0.75", f"model.name={name}"])
    with torch.device("meta"):
        groups = parameter_groups(build_model(recipe.model), 0.05, 0.75)
    assert max(group["lr_scale"] for group in groups) == 1
    least = min(group["lr_scale"] for group in groups)
    expected = f"the rate above is the head's; the embeddings get {least:.3g} of it"
    assert derive_facts(recipe)["layer decay"] == expected
    assert "layer decay" not in facts("deit3_small_1k_224")


def test_what_cannot_run_is_said() -> None:
    few = facts("deit3_small_1k_224", images=300)
    assert few["run"] == "none: expected run.global_batch=2048 to be at most 256, an epoch"
    assert "learning rate" not in few
    odd = facts("deit3_small_1k_224", "run.global_batch=2044")
    assert odd["8 GPUs"] == "2,044 views cannot be divided over 8 GPUs and run.accumulation=1"


@pytest.mark.parametrize(
    "words", [["schedule.epochs=0.5", "schedule.warmup_epochs=0"], ["schedule.warmup_epochs=799.5"]]
)
def test_odd_lengths(words: list[str]) -> None:
    table = facts("deit3_small_1k_224", *words)["learning rate"].split()
    assert table[5] == "0"
    assert table[-2] == "last"


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_fits_the_page(name: str) -> None:
    recipe = RECIPES[name]
    text = recipe_as_text(recipe)
    assert all(line == line.rstrip() and "\0" not in line for line in text.splitlines())
    # A file name longer than a line is left whole.
    assert max(len(line) for line in text.splitlines() if ".yaml" not in line) <= WIDTH
    content = recipe.model_dump(mode="json")
    assert sum(line.partition("  # ")[0].strip() != "" for line in text.splitlines() if "  # " in line) == sum(
        len(content[section]) for section in SECTIONS
    )


def test_a_flag_stays_with_its_value() -> None:
    lines = recipe_as_text(RECIPES["deit3_huge_1k_160"]).splitlines()
    command = [line for line in lines if line.startswith("    ") and "--" in line and "#" not in line]
    assert len(command) > 2
    assert not any(line.endswith(("--ngpus", "--smoothing", "--eval-crop-ratio", "--nodes")) for line in command)
    assert any("--ngpus 8" in line for line in command)


def test_the_table_is_grouped_by_source() -> None:
    blocks = list_as_text().split("\n\n")
    assert [len(block.splitlines()) - 1 for block in blocks] == [19, 9, 33, 3, 3, 4, 2]
    assert blocks[0].splitlines()[1].split()[0] == "deit3_small_1k_224"
