"""The picture of what training sees, and what it says of an image that cannot be shown."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit_fast.cli.main import main
from deit_fast.data.augment.erase import draw_erasing
from deit_fast.data.sources.open import Source, open_source
from deit_fast.data.tools.preview import preview, preview_grid
from deit_fast.recipe.table import get_recipe
from tests.oracles import three_augment as oracle

SIZE = 32


@pytest.fixture(scope="module")
def source(folder_data: Path) -> Source:
    return open_source(str(folder_data), "train")


def test_preview_shows_the_evaluation_view_and_the_augmented_ones(source: Source, tmp_path: Path) -> None:
    recipe = get_recipe("demo_pretrain", [f"model.image_size={SIZE}", "data.eval_crop_ratio=0.875"])
    grid = preview_grid(recipe, source, count=3, views=2)
    cell = SIZE + 4
    assert grid.shape == (3 * cell + 4, 3 * cell + 4, 3)
    for row, index in enumerate((0, 47, 95)):
        expected = oracle.evaluation_view(oracle.decode(source.read(index)), SIZE, 0.875)
        shown = grid[row * cell + 4 : (row + 1) * cell, 4:cell].astype(int)
        assert np.abs(shown - np.asarray(expected)).mean() < 0.5
        views = [grid[row * cell + 4 : (row + 1) * cell, column * cell + 4 : (column + 1) * cell] for column in (1, 2)]
        assert not np.array_equal(views[0], views[1])
    preview(recipe, source, tmp_path / "preview.png", count=3, views=2)
    enlarged = grid.repeat(3, axis=0).repeat(3, axis=1)  # 32 px are shown as 96
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "preview.png")), enlarged)


def test_preview_shows_what_is_erased(source: Source) -> None:
    words = [f"model.image_size={SIZE}", "augment.policy=none", "augment.color_jitter=0.0", "augment.crop=center"]
    plain, erased = (
        preview_grid(get_recipe("demo_pretrain", [*words, f"augment.erase={share}"]), source, count=2, views=3)
        for share in (0.0, 0.5)
    )
    augment = get_recipe("demo_pretrain", [*words, "augment.erase=0.5"]).augment
    boxes = draw_erasing(augment, SIZE, 0, 0, np.repeat([0, 95], 3), np.tile(np.arange(3), 2)).boxes[:, 0]
    assert 0 < (boxes[:, 2] > 0).sum() < 6
    changed = np.zeros(plain.shape[:2], bool)
    for number, (top, left, bottom, right) in enumerate(boxes.tolist()):
        row, column = number // 3 * (SIZE + 4) + 4, (number % 3 + 1) * (SIZE + 4) + 4
        changed[row + top : row + bottom, column + left : column + right] = True
    differs = (plain != erased).any(axis=2)
    assert not differs[~changed].any()
    assert differs[changed].mean() > 0.99


def test_an_image_that_cannot_be_decoded_is_one_line(
    folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = next((folder_data / "train").glob("*/*.jpg")).read_bytes()
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "whole.jpg").write_bytes(whole)
    (tmp_path / "train" / "b" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "views.png"
    assert main(["data", "preview", "demo_pretrain", "--data", str(tmp_path), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "cut.jpg: expected an image, found" in line
    assert not out.exists()
