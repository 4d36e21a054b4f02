"""Which image takes the place of one that cannot be used: decided by data and seed, not by when it is found."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deit_fast.data.loader.broken import find_refused
from deit_fast.runtime.errors import DataError
from deit_fast.runtime.philox import Stream, uniform

_ATTEMPTS = 64  # where half of the images are bad, one sample in 2^64 needs more


class Substitutes:
    """Substitutes among `images` images.

    A sample's is the first that can be used of a series drawn from (seed, epoch, index), with the crop and operations
    that the sample has in any case. Whether DALI refuses an image may depend on the window that it decodes, so that a
    verdict holds for one sample only: what is remembered is which images to test alone (`suspects`), which decides
    where a refusal is found and not what comes of it.

    windows: whether the pipeline decodes a window of each image, the second of its inputs.
    """

    def __init__(self, images: int, seed: int, device: torch.device, windows: bool) -> None:
        self.suspects: set[int] = set()
        """Images that DALI has refused."""
        self._images, self._seed, self._device, self._windows = images, seed, device, windows

    def choose(self, epoch: int, index: int, attempt: int, error: DataError) -> int:
        """The candidate number `attempt` for the place of image `index`. Raises DataError, of the last error, at 64."""
        if attempt == _ATTEMPTS:
            raise DataError(f"{error}; nor could any of {_ATTEMPTS} others be used in its place")
        place = np.array([index]), np.zeros(1, np.int64)
        return int(uniform(self._seed, Stream.SUBSTITUTE, epoch, *place, _ATTEMPTS)[0, attempt] * self._images)

    def refused(self, inputs: list[Any], places: NDArray[np.int64]) -> list[int]:
        """Those of the places [n] in a batch, given as the pipeline's inputs, whose image DALI cannot decode."""
        encoded = [inputs[0][place] for place in places]
        found = find_refused(encoded, inputs[1][places] if self._windows else None, self._device)
        return places[found].tolist()
