"""Small images for runs that are killed, hung or moved between world sizes; some of them are bad."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.hostile import damage, refused_by_decoder


def write_images(root: Path) -> None:
    """Writes two classes, in which every sixth training image is unusable, each in another way."""
    rng = np.random.default_rng(0)
    ways = iter(("cut", "garbage", "empty", "huge", "gif", "missing", "splice", "decoder"))
    for split, count in (("train", 24), ("val", 4)):
        for label in range(2):
            (root / split / str(label)).mkdir(parents=True)
            for index in range(count):
                path = root / split / str(label) / f"{index}.jpg"
                Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(path)
                if split == "train" and index % 6 == 0:
                    hurt(path, next(ways), rng)


def hurt(path: Path, way: str, rng: np.random.Generator) -> None:
    data = path.read_bytes()
    content = refused_by_decoder(data) if way == "decoder" else damage(way, data, data, rng)
    path.unlink()
    if content is None:
        path.symlink_to("nowhere")
    else:
        path.write_bytes(content)
