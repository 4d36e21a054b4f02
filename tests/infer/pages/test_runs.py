"""Pages about runs that a person moved into, that went on, or whose files a power cut left."""

import json
from pathlib import Path

import pytest
import torch

from deit_fast.checkpoint.format import load_checkpoint, save_checkpoint
from deit_fast.cli.main import main
from tests.infer.pages.test_pages import made_run, page_of


def test_lines_of_a_power_cut_are_no_records(
    folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk may hold zeros or other files' bytes in the place of the last lines; others may write into the folder."""
    runs = [made_run(tmp_path, folder_data, name, 0) for name in ("one", "two")]
    whole = json.dumps({"kind": "eval", "step": 60, "top1": 77.0})
    strange = [
        b"\xff\xfe\x00",
        b"\0\0\0",
        b"[1, 2]",
        b"5",
        b"null",
        b'{"kind": "eval", "top1": 88.0}',
        b'{"step": 9}',
    ]
    with open(runs[0] / "metrics.jsonl", "ab") as file:
        file.write(b"\n".join([b"", *strange, whole.encode(), b'{"kind": "eval", "step": 70, "top1": 9']))
    (runs[1] / "metrics.jsonl").write_bytes(b"\xff")
    (runs[1] / "result.json").write_text('{"minutes": 3, "step": null}')
    for run in runs:
        assert main(["report", str(run), "--no-images"]) == 0
    assert "77.00 %" in " ".join(page_of(runs[0] / "report.html").texts)
    assert main(["compare", *map(str, runs), "--out", str(tmp_path / "c.html")]) == 0
    assert capsys.readouterr().out.splitlines()[2:4] == ["one  top-1 77.00 %", "two  not evaluated"]


def test_a_run_that_one_is_in_has_a_name(
    folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, _ = (made_run(tmp_path, folder_data, name, 0) for name in ("one", "two"))
    monkeypatch.chdir(one)
    assert main(["report", ".", "--no-images"]) == 0
    assert "<title>demo_pretrain: one</title>" in (one / "report.html").read_text()
    monkeypatch.chdir(one / "checkpoints")
    assert main(["compare", "..", "../../two"]) == 0
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[1:3]] == ["one", "two"]
    assert "<title>one / two</title>" in Path("compare.html").read_text()


def test_an_error_names_the_page(folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made_run(tmp_path, folder_data, "run", 0)
    for words in (["report", str(run), "--no-images"], ["compare", str(run), str(run)]):
        with pytest.raises(SystemExit, match=r"^2$"):
            main([*words, "--out", str(tmp_path)])
        (line,) = capsys.readouterr().err.splitlines()
        assert f"argument --out: expected a file, got the folder {tmp_path} (see" in line
    assert main(["report", str(run), "--no-images", "--out", "/proc/page.html"]) == 2
    assert capsys.readouterr().err == "deit-fast: /proc/page.html: No such file or directory\n"


def test_an_evaluation_of_earlier_weights_is_not_compared(
    folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that went on after its report has other weights: the page says how to evaluate them."""
    one, two = (made_run(tmp_path, folder_data, name, seed) for seed, name in enumerate(("one", "my two")))
    for run in (one, two):
        (run / "metrics.jsonl").write_text("")
        assert main(["report", str(run)]) == 0
    capsys.readouterr()
    compare = ["compare", str(one), str(two), "--out", str(tmp_path / "c.html")]
    assert main(compare) == 0
    first, second, _ = capsys.readouterr().out.splitlines()
    assert "on the same images" in second
    top1 = json.loads((one / "evaluation" / "scores.json").read_text())["top1"]
    assert first == f"one  top-1 {top1:.2f} %"  # of the report, where training evaluated nothing
    assert "For paired intervals" not in (tmp_path / "c.html").read_text()

    last = two / "checkpoints" / "last.pt"
    content = load_checkpoint(last, torch.device("cpu"))
    content["model"]["head.bias"] += 1
    save_checkpoint(last, content)
    assert main(compare) == 0
    assert capsys.readouterr().out.splitlines()[1] == "my two  not evaluated"
    assert f"deit-fast report '{two}'" in page_of(tmp_path / "c.html").texts
    assert main(["report", str(two)]) == 0
    assert main(compare) == 0
    assert "on the same images" in capsys.readouterr().out
