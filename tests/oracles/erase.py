"""The boxes of timm's RandomErasing, from timm's own random numbers."""

import random

import numpy as np
import torch
from timm.data import random_erasing


def timms_boxes(count: int, size: int, most: int) -> np.ndarray:
    """[count, most, 4] top, left, bottom, right as timm draws them, zeros for none."""
    random.seed(0)
    erasing = random_erasing.RandomErasing(1.0, mode="const", max_count=most, device="cpu")
    boxes = np.zeros((count, most, 4), np.int64)
    for row in boxes:
        written: list[tuple[int, ...]] = []

        class Canvas:
            def __setitem__(self, where: tuple[slice, slice, slice], _: torch.Tensor, written=written) -> None:
                _, rows, columns = where
                written.append((rows.start, columns.start, rows.stop, columns.stop))

        erasing._erase(Canvas(), 3, size, size, torch.float32)
        row[: len(written)] = np.reshape(written, (-1, 4))
    return boxes
