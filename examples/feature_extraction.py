"""Features of images from a trained model, and how well their nearest neighbours agree with the class folders.

    python examples/feature_extraction.py CHECKPOINT IMAGES --out features.npz

CHECKPOINT is a run's folder, a file of any known format, or the name of published weights. IMAGES holds a folder of
images for each class. features.npz then has `features`, float32 [N, D], `labels`, int64 [N], and the `paths` and
`classes` that they stand for. The printed accuracy is that of a classifier that was never trained: the class of the k
nearest other images, by the cosine of the angle between features.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

import deit_fast

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}


def nearest_accuracy(features: Tensor, labels: Tensor, k: int) -> float:
    """Percentage of images [N, D] whose k nearest others have the image's own label [N] most often."""
    similarity = normalize(features) @ normalize(features).T
    similarity.fill_diagonal_(-torch.inf)  # an image is no neighbour of its own
    neighbours = labels[similarity.topk(k).indices]
    return 100 * (neighbours.mode().values == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("images", type=Path)
    parser.add_argument("--out", type=Path, default=Path("features.npz"))
    parser.add_argument("--neighbours", type=int, default=5, metavar="K", help="default: 5")
    arguments = parser.parse_args()

    paths = sorted(path for path in arguments.images.glob("*/*") if path.suffix.lower() in SUFFIXES)
    classes = sorted({path.parent.name for path in paths})
    labels = torch.tensor([classes.index(path.parent.name) for path in paths])

    model = deit_fast.load_model(arguments.checkpoint)
    features = deit_fast.extract_features(model, paths)
    if features.ndim == 3:  # a distilled model has what both of its heads see, [N, 2, D]
        features = features.flatten(1)

    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        arguments.out,
        features=features.numpy(),
        labels=labels.numpy(),
        paths=np.array([str(path) for path in paths]),
        classes=np.array(classes),
    )
    accuracy = nearest_accuracy(features, labels, arguments.neighbours)
    print(f"{len(paths)} images of {len(classes)} classes, {features.shape[1]} features each: {arguments.out}")
    print(f"{arguments.neighbours} nearest neighbours of the same class: {accuracy:.1f} %")


if __name__ == "__main__":
    main()
