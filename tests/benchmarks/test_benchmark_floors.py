"""The guard on the CPU ratios, and the model table's rotation over the zoo."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import floors, throughput
from benchmarks.__main__ import main
from benchmarks.measure import Session
from benchmarks.throughput import least_recent_first, next_path
from benchmarks.workload import TINY, ZOO, add_fitting_row, find_recipe
from deit_fast.data.loader.backend import choose_backend
from deit_fast.models import cost
from deit_fast.models.cost import forward_macs, training_flops
from deit_fast.runtime.errors import is_out_of_memory
from deit_fast.zoo import ARCHITECTURES

CPU = torch.device("cpu")
CASES = [floor.case for floor in floors.FLOORS]
AUTO = choose_backend("auto", CPU)
OTHER = "dali" if AUTO == "native" else "native"


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Recorded ratios, in a file of the test's own."""
    path = tmp_path / "floors.json"
    kinds = {"another CPU": 3.0, "a third": 2.0}
    records = [
        {"machine": {"cpu": cpu}, "image_backend": AUTO, "ratios": dict.fromkeys(CASES, ratio)}
        for cpu, ratio in kinds.items()
    ]
    path.write_text(json.dumps(records))
    monkeypatch.setattr(floors, "RECORD", path)
    return path


def measured(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """Every floor is measured as these values in turn, the last one for ever."""

    def measures(session: Session, source: Any) -> dict[str, Any]:
        left = {floor.case: list(values) for floor in floors.FLOORS}
        return {case: lambda each=each: each.pop(0) if len(each) > 1 else each[0] for case, each in left.items()}

    monkeypatch.setattr(floors, "_measures", measures)


def test_a_ratio_under_its_floor_fails_after_a_second_try(
    record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["floors", "--device", "cpu", "--out", str(tmp_path / "out")]
    for values, status in (((2.0,), 0), ((1.0, 2.0), 0), ((1.0,), 1), ((1.5,), 1)):  # 1.5 is too little of the FLOPs
        measured(monkeypatch, *values)
        assert main(words) == status
    page = capsys.readouterr().out
    assert page.count("UNDER ITS FLOOR") == len(floors.FLOORS) + 1
    (row, *_) = json.loads((tmp_path / "out" / "floors-cpu.json").read_text())["rows"]
    assert (row["floor"], row["ratios"]["measured"]) == (1.4, 1.5)


def test_recording(record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, 3.0)
    assert main(["floors", "--record", "--out", str(tmp_path / "out")]) == 0
    *others, own = json.loads(record.read_text())
    assert [each["machine"]["cpu"] for each in others] == ["another CPU", "a third"]
    assert set(own["ratios"].values()) == {3.0}
    assert own["machine"]["cores"] >= 1
    assert own["data"] == "none"
    measured(monkeypatch, 2.0)  # enough for the third CPU, and too little for this one
    assert main(["floors", "--device", "cpu", "--out", str(tmp_path / "again")]) == 1
    measured(monkeypatch, 4.0)
    assert main(["floors", "--record", "--out", str(tmp_path / "out")]) == 0
    assert len(json.loads(record.read_text())) == 3


def test_the_loaders_floors_are_of_the_same_image_backend(
    record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loads = {floor.case for floor in floors.FLOORS if floor.loads}
    lower, words = iter((3.0, 2.5)), ["floors", "--out", str(tmp_path / "out")]
    records = json.loads(record.read_text())
    for each in records:  # the ratios of both CPUs were taken with the other backend
        each["image_backend"], each["ratios"] = OTHER, dict.fromkeys(CASES, next(lower))
    record.write_text(json.dumps(records))
    measured(monkeypatch, 2.0)  # too little of the FLOPs, of which 0.99 is asked for
    assert main(words) == 1
    said = capsys.readouterr()
    assert set(re.findall(r"floors: (\w+): NO FLOOR", said.err)) == loads
    assert said.out.count("no floor recorded") == len(loads)
    assert said.out.count("UNDER ITS FLOOR") == 1
    measured(monkeypatch, 5.0)
    assert main([*words, "--record"]) == 0
    assert len(json.loads(record.read_text())) == 3
    measured(monkeypatch, 3.4)  # 0.7 of 5 is 3.5, of the lowest ratio with the other backend 1.75
    assert main(words) == 1
    assert capsys.readouterr().out.count("UNDER ITS FLOOR") == len(CASES)
    monkeypatch.setattr(floors, "choose_backend", lambda *_: OTHER)
    assert main(words) == 1
    assert capsys.readouterr().out.count("UNDER ITS FLOOR") == len(CASES) - len(loads)


def test_the_recorded_floors_are_complete() -> None:
    for content in json.loads(floors.RECORD.read_text()):
        lacking = {"rand_augment"} if content["image_backend"] == "dali" else set()
        assert set(CASES) - lacking <= content["ratios"].keys() <= set(CASES)
        assert content.keys() == {"date", "machine", "data", "image_backend", "ratios"}


def test_the_count_of_flops() -> None:
    saved = floors._subset_flops()
    assert 0.95 <= saved <= 1.0


def test_small_ratios_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_data: Path) -> None:
    monkeypatch.setattr(floors, "MODEL", TINY)
    monkeypatch.setattr(floors, "REPEATS", 1)
    monkeypatch.setattr(floors, "VIEWS", 8)
    monkeypatch.setattr(floors, "IMAGES", 8)
    monkeypatch.setattr(Session, "repeats", 1)
    session = Session("floors", CPU, True, tmp_path / "floors.json")
    assert floors.run(session, str(shared_data / "imagenet-sample"), record=False) in (True, False)
    assert [row["case"] for row in session.rows] == [floor.case for floor in floors.FLOORS]
    assert all(row["ratios"]["measured"] > 0 for row in session.rows)


def test_gradients_of_grouped_convolutions_are_two_forwards() -> None:
    layer, images = nn.Conv2d(8, 8, 3, groups=8, padding=1, bias=False), torch.zeros(2, 8, 6, 6, requires_grad=True)
    with FlopCounterMode(display=False, custom_mapping=cost._CONVOLUTION) as counter:
        layer(images).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 2 * 8 * 6 * 6 * 9


@pytest.mark.parametrize("name", ["cait_xxs24", "resmlp_12", "patchconvnet_s60", "deit_tiny_distilled_patch16"])
def test_every_family_trains_three_forwards(name: str) -> None:
    section = find_recipe(name, 2, ["model.drop_path=0"]).model
    assert training_flops(section, 2) == pytest.approx(6 * forward_macs(section), rel=0.02)


def test_the_whole_zoo_is_timed_in_turns(tmp_path: Path) -> None:
    assert set(ZOO) == {name for name in ARCHITECTURES if "nano" not in name}
    assert ZOO[:3] == ["deit3_tiny_patch16", "deit3_small_patch16", "deit3_medium_patch16"]

    def write(name: str, date: str, models: list[str], quick: bool = False, chosen: str = "fixed") -> None:
        rows = [{"model": model, "mode": "train", "batch_chosen": chosen} for model in models]
        (tmp_path / name).write_text(json.dumps({"device": "cpu", "quick": quick, "date": date, "rows": rows}))

    path = tmp_path / "throughput-train-cpu.json"
    write(path.name, "2026-01-01", ["a", "b"])
    write(next_path(path).name, "2026-01-02", ["c"])
    write("throughput-train-cpu-quick.json", "2026-01-03", ["d"], quick=True)
    write("throughput-train-cpu-batch-auto.json", "2026-01-03", ["d"], chosen="best")
    assert next_path(path).name == "throughput-train-cpu-3.json"
    assert least_recent_first(list("abcd"), tmp_path, CPU, "train", None) == ["d", "a", "b", "c"]
    assert least_recent_first(list("abcd"), tmp_path, CPU, "train", "auto") == ["a", "b", "c", "d"]
    assert least_recent_first(list("abcd"), tmp_path, CPU, "inference", None) == list("abcd")


def test_what_does_not_fit_or_run_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session("throughput", CPU, True, tmp_path / "x.json")
    monkeypatch.setattr(throughput, "_free_bytes", lambda device: 100 * 2**20)

    def broken(_: Session, __: str, word: str, *___: Any, **____: Any) -> Any:
        raise (
            ValueError("no such\nkernel")
            if word == "deit3_tiny_patch16"
            else RuntimeError("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
        )

    monkeypatch.setattr(throughput, "_measure", broken)
    throughput.run(session, "inference", ["deit3_large_patch16", "deit3_tiny_patch16", TINY], 4)
    assert session.skipped == ["deit3_large_patch16", "deit3_tiny_patch16", TINY]
    assert not session.rows
    add_fitting_row(session, TINY, 4, lambda word, size: {"batch": size})
    assert session.rows == [{"batch": 4}]
    assert is_out_of_memory(RuntimeError("OutOfMemoryError: CUDA out of memory."))
