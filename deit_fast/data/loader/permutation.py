"""The full shuffle of an epoch, one array for all processes of a machine where it is large."""

import numpy as np
from numpy.typing import NDArray

from deit_fast.runtime.philox import Stream, generator


def epoch_permutation(num_images: int, seed: int, epoch: int) -> NDArray[np.uint32]:
    """The images of an epoch, shuffled by (seed, epoch), uint32 [num_images]."""
    images = np.arange(num_images, dtype=np.uint32)
    generator(seed, Stream.ORDER, epoch).shuffle(images)  # moves what `permutation` of as many int64 moves
    return images
