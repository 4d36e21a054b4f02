"""The model's result for each image, summed up as rows, which the report and the confidence intervals read."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deit_fast.infer.metrics import Metric, Predicted, Totals
from deit_fast.runtime.world import to_device


@dataclass(frozen=True)
class Outcomes:
    """A model's results for N images: arrays [N], in the order of the source."""

    predictions: NDArray[np.int64]
    """The class in the first place (infer/ranking.py); -1 where logits are not finite."""
    confidences: NDArray[np.float64]
    """The softmax value of the predicted class, in [0, 1]; 0 where logits are not finite."""
    in_top5: NDArray[np.bool_]
    """Whether the label is in the first five places."""


def outcome_rows(images: int) -> Metric:
    """A metric whose sum holds each of `images` images' results in a row; it has no figures: see `read_outcomes`."""

    def rows(seen: Predicted) -> Tensor:
        """[images, 4]: prediction, confidence, whether the label is in the top 5, and 1; zeros for all other images."""
        confidences, predictions = seen.most_likely
        in_top5 = (seen.top5 == seen.labels[:, None]).any(dim=1)
        columns = (predictions, confidences, in_top5, torch.ones_like(in_top5))
        table = torch.zeros(images, 4, dtype=torch.float64, device=seen.logits.device)
        places = to_device(seen.indices, table.device)
        return table.index_add_(0, places, torch.stack([each.double() for each in columns], dim=1))

    return Metric(rows, lambda totals, images: {})


def read_outcomes(totals: Totals) -> Outcomes:
    """The results of all images, from the sum [N, 4] of `outcome_rows`."""
    predictions, confidences, in_top5, times = totals.T
    assert (times == 1).all(), "every image is evaluated exactly once"
    return Outcomes(predictions.astype(np.int64), confidences, in_top5.astype(bool))
