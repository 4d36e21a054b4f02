"""A metric of one's own on any images: the mean accuracy of the classes, and how far the model's confidence is off.

    python examples/own_metric.py CHECKPOINT IMAGES

IMAGES holds a folder of images for each of the model's classes. The metrics are computed here, from what
`deit_fast.predict` returns. A metric that `deit-fast evaluate` and every training report is a file in the package:
docs/extending.md, "An evaluation metric".
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import deit_fast


def balanced_accuracy(labels: Sequence[str], predictions: Sequence[str]) -> float:
    """Mean over classes of the percentage of a class's images that are predicted right: small classes count as much."""
    hits = defaultdict(list)
    for label, prediction in zip(labels, predictions, strict=True):
        hits[label].append(label == prediction)
    return 100 * float(np.mean([np.mean(each) for each in hits.values()]))


def calibration_error(hits: Sequence[bool], confidences: Sequence[float], bins: int = 15) -> float:
    """Expected calibration error (arXiv:1706.04599, section 3), percent: |accuracy - confidence| in bins of confidence.

    hits: whether each image is predicted right. confidences: its highest probability, in [0, 1].
    """
    right, sure = np.asarray(hits, float), np.asarray(confidences)
    place = np.minimum((sure * bins).astype(int), bins - 1)
    gaps = [abs(right[place == each].sum() - sure[place == each].sum()) for each in range(bins)]
    return 100 * sum(gaps) / len(sure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("images", type=Path)
    arguments = parser.parse_args()

    model = deit_fast.load_model(arguments.checkpoint)
    paths = [path for name in model.classes for path in sorted((arguments.images / name).glob("*"))]
    found = deit_fast.predict(model, paths, top_k=1)
    read = [(path.parent.name, each) for path, each in zip(paths, found, strict=True) if each.error is None]
    labels = [label for label, _ in read]
    predictions = [model.classes[each.labels[0]] for _, each in read]
    hits = [label == prediction for label, prediction in zip(labels, predictions, strict=True)]

    print(f"images                      {len(read)}, {len(found) - len(read)} cannot be read")
    print(f"accuracy                    {100 * np.mean(hits):.2f} %")
    print(f"mean accuracy of classes    {balanced_accuracy(labels, predictions):.2f} %")
    print(f"expected calibration error  {calibration_error(hits, [each.scores[0] for _, each in read]):.2f} %")


if __name__ == "__main__":
    main()
