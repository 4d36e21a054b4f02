"""Lines of at most 80 columns, whose parts stay whole."""

import shlex

from hypothesis import given
from hypothesis import strategies as st

from deit_fast.cli.ending import describe_end
from deit_fast.runtime.fold import COLUMNS, fold


@given(st.lists(st.text("abc/", min_size=1, max_size=90), min_size=1, max_size=9), st.integers(0, 30))
def test_a_fold_keeps_every_part(parts: list[str], indent: int) -> None:
    lines = fold(parts, indent).split("\n")
    assert [word for line in lines for word in line.split(" ") if word] == parts
    for number, line in enumerate(lines):
        words = line.split()
        assert len(line) <= COLUMNS or len(words) == 1  # a long part stands alone
        assert line.startswith(" " * indent if number else words[0])
        if number:  # a line is full: the next part would not have fitted
            assert len(lines[number - 1]) + 1 + len(words[0]) > COLUMNS


def test_a_command_can_be_pasted() -> None:
    words = ["deit-fast evaluate", *(f"--{letter * 22} 1" for letter in "abcd")]
    folded = fold(words, 4, end=" \\")
    assert all(len(line) <= COLUMNS for line in folded.split("\n"))
    assert shlex.split(folded.replace("\\\n", "")) == shlex.split(" ".join(words))


def test_the_end_of_a_training_fits() -> None:
    result = {"val_images": 288, "top1": 89.58, "ema_top1": 88.0, "best_top1": 90.0, "minutes": 0.4, "image_size": 16,
              "images_per_second": 1234.0, "peak_memory_gib": 11.2}  # fmt: skip
    for out in ("runs/demo", "/scratch/projects/vision/someone/experiments/deit3-small-400-epochs/run-17"):
        lines = "\n".join(describe_end({**result, "checkpoint": f"{out}/checkpoints/last.pt"}, out, "/data")).split(
            "\n"
        )
        assert any(line.startswith("time ") and " 24 s, 1,234 images/s" in line for line in lines)
        for line in lines:
            assert len(line) <= COLUMNS or out in line
            if len(line) > COLUMNS:
                assert not line.startswith(("report", "checkpoint"))  # the path is on the next line
