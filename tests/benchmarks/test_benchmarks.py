"""The benchmark commands run and say what they document; the peers they compare with are honest ones."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.day import PARTS
from benchmarks.figures import read_figures
from benchmarks.goals import GOALS, NOT_TIMED
from benchmarks.images import Sample, write_images
from benchmarks.measure import SCHEMA, Session, interleave, stats
from benchmarks.peers import ReferenceBatch, ReferenceEngine, TimmBatch, TimmEngine
from benchmarks.pil import decode_chain, evaluation_chain, pil_loader, three_augment_chain
from benchmarks.report import MISSING, write_report
from benchmarks.throughput import find_batch
from benchmarks.workload import TINY, ZOO, build_step, find_recipe, synthetic_batches
from deit_fast.data.sources.open import open_source
from deit_fast.models.cost import count_parameters, forward_macs, training_flops
from deit_fast.recipe.sections import Data
from deit_fast.runtime.errors import RecipeError, is_out_of_memory

CPU = torch.device("cpu")
TOP_KEYS = {"schema", "benchmark", "device", "quick", "date", "seconds", "machine", "versions", "settings",
            "ceilings", "rows", "skipped"}  # fmt: skip
STATS = {"median", "min", "max", "repeats"}
TINY_MODEL = ["--models", TINY]
COMMANDS: dict[str, tuple[list[str], set[str]]] = {
    "engine": (
        TINY_MODEL,
        {"model", "resolution", "batch", "drop_path", "params_m", "gmacs", "timm_compiled", "sdpa_backend", "train",
         "eval", "errors", "ratios"},
    ),
    "throughput": (
        [*TINY_MODEL, "--mode", "train", "--batch", "2"],
        {"model", "params_m", "gmacs", "images_per_second", "peak_memory_mb", "resolution", "mode", "batch",
         "batch_chosen", "executed_gflops_per_image", "mfu"},
    ),
    "optimizer": (
        TINY_MODEL,
        {"model", "params_m", "tensors", "copy_gb_per_second", "milliseconds", "floor_milliseconds", "ours_over_floor",
         "ratios", "errors"},
    ),
    "decode": ([], {"case", "over_pil", "errors", "images_per_second"}),
    "loader": (["--cases", "decode", "repeated_augmentation", "evaluation", "shards_256"],
               {"case", "views", "errors", "ours", "ratios"}),
    "listing": (["--images", "200"], {"images", "cpu_seconds", "bytes_an_image", "processes", "mb_of_all_processes"}),
    "end-to-end": (
        TINY_MODEL,
        {"model", "resolution", "batch", "steps_per_repeat", "repeats_of_an_image", "images_per_second", "data_wait",
         "ratios"},
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _few_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "repeats", 2)


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jpegs")
    write_images(folder, 12)
    return folder


def command(name: str, out: Path, *words: str) -> dict[str, Any]:
    assert main([name, "--device", "cpu", "--quick", "--out", str(out), *words]) == 0
    (path,) = out.glob("*.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_leaves_what_it_documents(name: str, tmp_path: Path, jpegs: Path) -> None:
    words, keys = COMMANDS[name]
    if name in ("loader", "end-to-end", "decode"):
        words = [*words, "--data", str(jpegs)]
    content = command(name, tmp_path, *words)
    assert content.keys() == TOP_KEYS
    assert content["schema"] == SCHEMA
    assert content["machine"]["cores"] >= 1
    assert content["versions"]["torch"] == metadata.version("torch")
    assert content["rows"]
    for row in content["rows"]:
        assert row.keys() >= keys
        assert not row.get("errors")
        assert all(value > 0 for value in row.get("ratios", {}).values())
    figures = read_figures(tmp_path)
    assert bool(figures) == (name in {part.words.split()[0] for part in PARTS})  # a day's are written one by one
    assert all(figure["value"] >= 0 and figure["unit"] for figure in figures)


def test_a_race_tells_time_and_memory_of_each_side(
    tmp_path: Path, jpegs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs = {"torchvision_pil": (), "spdl": ("no_such_module", "nor_this")}
    monkeypatch.setattr("benchmarks.loader_peers.NEEDS", needs)
    (row,) = command("loader", tmp_path, "--cases", "race_three_augment", "--data", str(jpegs))["rows"]
    assert (row["case"], row["absent"], row["errors"]) == ("race_three_augment", {"spdl": "no_such_module"}, {})
    assert "spdl is left out: no_such_module is not installed" in capsys.readouterr().err
    sides = {"ours", "torchvision_pil"}
    assert row["cpu_ms_per_view"].keys() == row["pss_mb"].keys() == sides
    assert row["over_ours"]["torchvision_pil"] == pytest.approx(
        row["cpu_ms_per_view"]["torchvision_pil"] / row["cpu_ms_per_view"]["ours"]
    )
    assert all(100 < each < 5000 for each in row["pss_mb"].values())  # torch alone takes more than 100 MB


def test_engine_row_compares_all_three(tmp_path: Path) -> None:
    (row,) = command("engine", tmp_path, *TINY_MODEL, "--batch", "2")["rows"]
    assert row["train"].keys() >= {"ours", "reference", "timm"}
    assert row["train"].keys() >= row["eval"].keys() >= {"ours", "reference", "timm"}
    assert row["train"]["ours"]["images_per_second"].keys() == STATS
    assert {f"{kind}_ours_over_{peer}" for kind in ("train", "eval") for peer in ("reference", "timm")} <= row[
        "ratios"
    ].keys()


@pytest.mark.parametrize(
    ("name", "params", "gmacs"),
    [("small", 22.06, 4.60), ("base", 86.59, 17.56), ("large", 304.37, 61.55), ("huge", 632.13, 167.30)],
)
def test_parameters_and_flops_are_the_published_ones(name: str, params: float, gmacs: float) -> None:
    entry = next(each for each in ZOO if name in each)
    section = find_recipe(entry, 2, ["model.drop_path=0"]).model
    assert count_parameters(section) / 1e6 == pytest.approx(params, rel=0.005)
    assert forward_macs(section) / 1e9 == pytest.approx(gmacs, rel=0.005)
    # Forward and backward are three forwards, less the gradient of the images.
    assert training_flops(section, 2) == pytest.approx(6 * forward_macs(section), rel=0.02)


@pytest.mark.parametrize("mixed", [False, True], ids=["plain", "mixed"])
@pytest.mark.parametrize("loss", ["bce", "cross_entropy"])
def test_reference_engine_learns_what_ours_learns(loss: str, mixed: bool) -> None:
    """The baseline is slow, not wrong: the same losses from the same weights and batches."""
    words = ["model.drop_path=0", "run.precision=fp32", f"loss.name={loss}", "model.num_classes=10"]
    recipe = find_recipe(TINY, 4, words if mixed else [*words, "mix.mixup=0", "mix.cutmix=0"])
    step = build_step(recipe, CPU)
    weights = {key: value.clone() for key, value in step.state.model.state_dict().items()}
    reference = ReferenceEngine(recipe, CPU, weights)
    timm = TimmEngine(recipe, CPU, compiled=False, weights=weights)
    losses: dict[str, list[float]] = {"ours": [], "reference": [], "timm": []}
    for index, batch in enumerate(synthetic_batches(recipe, CPU, 5)):
        step([batch], 1e-2 * (index + 1))
        losses["ours"].append(step.meter.sums[0].item() - sum(losses["ours"]))
        losses["reference"].append(reference(ReferenceBatch.of(batch, recipe.data), 1e-2 * (index + 1)))
        losses["timm"].append(timm(TimmBatch(batch, recipe), 1e-2 * (index + 1)).item())
    assert losses["reference"] == pytest.approx(losses["ours"], rel=1e-4)
    # T's collate function rounds what it mixes to uint8.
    assert losses["timm"] == pytest.approx(losses["ours"], rel=1e-2 if mixed else 1e-4)
    assert len({round(value, 5) for value in losses["ours"]}) == 5


@pytest.mark.parametrize(
    "word", ["model.pool=avg", "optim.name=adamw", "run.accumulation=2", "model.activation=gelu_tanh"]
)
def test_the_peers_refuse_what_they_do_not_do(word: str) -> None:
    key, _, value = word.partition("=")
    with pytest.raises(RecipeError, match=rf"{key}='?{value}'?: expected .*the peers know no other"):
        ReferenceEngine(find_recipe(TINY, 4, [word]), CPU)


def test_pil_baseline(jpegs: Path) -> None:
    source = Sample(open_source(str(jpegs)), 6)
    assert len(source) == 6
    order = [0, 0, 0, 5, 5, 5]
    for chain in (three_augment_chain(32, Data()), evaluation_chain(32, Data(eval_crop_ratio=0.875))):
        batches = list(pil_loader(source, order, chain, 4, 0, pin_memory=False))
        assert [images.shape for images, _ in batches] == [(4, 3, 32, 32), (2, 3, 32, 32)]
        assert batches[0][0].dtype == torch.float32
        assert torch.cat([labels for _, labels in batches]).tolist() == source.labels[order].tolist()
    views = next(iter(pil_loader(source, order, three_augment_chain(32, Data()), 3, 0, pin_memory=False)))[0]
    assert not torch.equal(views[0], views[1])
    widths = next(iter(pil_loader(source, order, decode_chain, 6, 0, pin_memory=False)))[0]
    assert set(widths.tolist()) <= {375, 500}


def test_best_batch_ends_where_memory_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import throughput

    def limited(recipe: Any, mode: str, device: torch.device) -> Any:
        if recipe.run.global_batch > 4:
            raise torch.OutOfMemoryError("no memory")
        return lambda: None

    monkeypatch.setattr(throughput, "build_call", limited)
    monkeypatch.setattr(throughput, "WORTH", 0.0)
    session = Session("throughput", CPU, True, tmp_path / "x.json")
    assert find_batch(session, "train", TINY) == 4
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(ValueError("shape"))


def test_a_case_that_fails_costs_only_itself() -> None:
    def broken() -> None:
        raise ValueError("no such\nkernel")

    timed, errors = interleave({"good": lambda: None, "bad": broken}, CPU, print, repeats=3, seconds=0.0)
    assert timed.keys() == {"good"}
    assert timed["good"].seconds["repeats"] == 3
    assert errors == {"bad": "ValueError: no such kernel"}


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    page = write_report(tmp_path, tmp_path).read_text()
    goals = [line for line in page.splitlines() if line.startswith(("| G", "| C"))]
    assert len(goals) == len(GOALS) + len(NOT_TIMED)
    assert sum(MISSING in line for line in goals) == len(GOALS)
    for name in ZOO:
        assert any(line.startswith(f"| {name}") and MISSING in line for line in page.splitlines())


def test_report_reads_goals_and_leaves_quick_figures_out(tmp_path: Path) -> None:
    def write(name: str, quick: bool, wanted: float) -> None:
        figures = {**stats([1.0, 2.0, 3.0])}
        row = {"case": "evaluation", "ratios": {"wall": 1.0, "cpu": wanted}}
        row |= {side: {"images_per_second": figures, "images_per_cpu_second": figures} for side in ("ours", "peer")}
        machine = {"cpu": "a CPU", "cores": 2}
        content = {"schema": SCHEMA, "benchmark": "loader", "device": "cpu", "quick": quick, "date": "2026-01-02T03",
                   "machine": machine, "versions": {"torch": "2"}, "rows": [row]}  # fmt: skip
        (tmp_path / name).write_text(json.dumps(content))

    write("loader-cpu-quick.json", True, 9.9)
    assert "9.9" not in write_report(tmp_path, tmp_path).read_text()
    write("loader-cpu.json", False, 1.5)
    page = write_report(tmp_path, tmp_path).read_text()
    assert "| C1 | loader per CPU-second, evaluation, over PIL | >= 1.4x | 1.5x | met |" in " ".join(page.split())
    assert "a CPU, 2 cores; torch 2; 2026-01-02" in page
    assert (tmp_path / "ratios-cpu.png").stat().st_size > 1000
    write("loader-cpu.json", False, 1.3)
    assert "| 1.3x | **not met** |" in " ".join(write_report(tmp_path, tmp_path).read_text().split())


def test_bad_words_cost_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["throughput", "--device", "cpu", "--batch", "7"]) == 2
    assert (
        main(["engine", "--device", "cpu", "--quick", "--models", "deit3_smal_patch16", "--out", "/nonexistent"]) == 2
    )
    assert "deit3_small_patch16" in capsys.readouterr().err
