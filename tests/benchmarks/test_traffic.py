"""What the traffic command makes of counts, and what its record holds. `.ci/run` does the counting."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import floors, traffic
from benchmarks.__main__ import main

# GB of a block: products and attention as they were before the kernels, and what the others were to come down to.
TARGETS = {
    "deit3_base_patch16@224": (3.768, 4.6),
    "deit3_base_patch16@224 model.drop_path=0": (4.695, 4.9),
    "deit3_large_patch16@192": (2.590, 3.2),
    "deit3_huge_patch14@154 model.drop_path=0.6": (2.031, 2.8),
}


def kernels(others: int, blocks: int) -> list[dict[str, Any]]:
    """Of so many blocks: a product of 400 MB and `others` MB in two kernels each, and what is there once."""
    block = [("mm", True, 400), ("ours", False, others - 100), ("triton", False, 100)] * blocks
    return [
        {"name": name, "product": product, "bytes": size * 10**6, "origins": []}
        for name, product, size in [*block, ("head", False, 77)]
    ]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Counts of `others` MB a block, or a process that ends with `error`; a record of the test's own."""
    told: dict[str, Any] = {"others": 500, "error": None}

    def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        if told["error"]:
            return subprocess.CompletedProcess(command, 1, "", f"Traceback\n{told['error']}\n")
        lines = [json.dumps(kernels(told["others"], blocks)) for blocks in traffic.BLOCKS]
        if "--assemble" in command:
            lines.insert(0, json.dumps(told["binaries"]))
        return subprocess.CompletedProcess(command, 0, "\n".join(["a warning", *lines]), "")

    monkeypatch.setattr(traffic.subprocess, "run", run)
    monkeypatch.setattr(traffic, "environment", lambda folder: {})
    monkeypatch.setattr(traffic, "RECORD", tmp_path / "traffic.json")
    sums = {" ".join(case): {"products": 0.4, "others": 0.5} for case in traffic.CASES}
    traffic.RECORD.write_text(json.dumps({"torch": torch.__version__, "gigabytes": sums}))
    return told


def test_sums_are_held_within_two_percent(
    counted: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["traffic", "--out", str(tmp_path / "out")]
    for others, status in ((500, 0), (509, 0), (491, 0), (511, 1), (489, 1)):
        counted["others"] = others
        assert main(words) == status
        assert capsys.readouterr().out.count("DIFFERS") == status * len(traffic.CASES)
    traffic.RECORD.write_text(traffic.RECORD.read_text().replace(torch.__version__, "2.0"))
    assert main(words) == 0  # another torch's: printed, not held
    rows = json.loads((tmp_path / "out" / "traffic-cpu.json").read_text())["rows"]
    assert [row["case"] for row in rows] == [" ".join(case) for case in traffic.CASES]
    assert (rows[0]["products"], rows[0]["others"], rows[0]["recorded"]) == (0.4, 0.489, None)
    assert {(each["name"], each["megabytes"], each["times"]) for each in rows[0]["kernels"]} == {
        ("mm", 400, 1), ("ours", 389, 1), ("triton", 100, 1)
    }  # fmt: skip


def test_a_kernel_that_spills_fails(
    counted: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["traffic", "--assemble", "--quick", "--out", str(tmp_path / "out")]
    for stack, status in ((0, 0), (16, 1)):
        counted["binaries"] = [
            {"name": "gelu", "registers": 99, "stack": 0},
            {"name": "x", "registers": 255, "stack": stack},
        ]
        assert main(words) == status
        page = capsys.readouterr().out
        assert "2 binaries of at most 255 registers" in page
        assert ("SPILLS: x" in page) == (status == 1)


def test_recording(counted: dict[str, Any], tmp_path: Path) -> None:
    counted["others"] = 600
    assert main(["traffic", "--record", "--out", str(tmp_path / "out")]) == 0
    record = json.loads(traffic.RECORD.read_text())
    assert record["torch"] == torch.__version__
    assert record["gigabytes"].keys() == {" ".join(case) for case in traffic.CASES}
    assert record["gigabytes"]["deit3_large_patch16@192"] == {"products": 0.4, "others": 0.6}


def test_a_model_of_ones_own(counted: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its kernels; there is nothing to hold it to."""
    words = ["traffic", "--out", str(tmp_path / "out"), "--models", "deit3_small_patch16@224", "model.drop_path=0.3"]
    assert main(words) == 0
    page = capsys.readouterr().out
    assert "deit3_small_patch16@224 model.drop_path=0.3" in page
    assert "400 MB  1 x ours" in page


def test_mistakes_are_one_line(
    counted: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["traffic", "--out", str(tmp_path / "out")]
    assert main([*words, "--models", "deit3_smal"]) == 2
    assert main([*words, "model.drop_pth=0"]) == 2
    assert main([*words, "--device", "cuda"]) == 2
    counted["error"] = "KeyError: 'norm'"
    assert main(words) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert "benchmarks: --device cuda: expected cpu, where traffic runs" in said
    assert said[-1].startswith(f"benchmarks: traffic: expected torch {torch.__version__} to compile deit3_base_patch16")
    assert "KeyError: 'norm'" in said[-1]
    traffic.RECORD.write_text(traffic.RECORD.read_text().replace(torch.__version__, "2.0"))
    assert main(words) == 0  # another torch may compile otherwise: what it said is kept
    assert "KeyError: 'norm'" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "out" / "traffic-cpu.json").read_text())["skipped"]) == len(traffic.CASES)
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main([*words, "--quick"]) == 2
    assert "benchmarks: traffic: expected gcc on PATH, found none" in capsys.readouterr().err


def test_the_record_is_of_a_torch_that_the_floors_name_and_within_the_targets() -> None:
    record = json.loads(traffic.RECORD.read_text())
    assert record["torch"] in {each["machine"]["torch"] for each in json.loads(floors.RECORD.read_text())}
    assert record["gigabytes"].keys() == TARGETS.keys() == {" ".join(case) for case in traffic.CASES}
    for case, (products, others) in TARGETS.items():
        sums = record["gigabytes"][case]
        assert sums["products"] == pytest.approx(products, abs=0.001), case
        assert sums["others"] <= others, case
