"""Chooses the image that replaces an unusable one, by data and seed alone and not by when the fault is found."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deit_fast.data.loader.broken import find_refused
from deit_fast.runtime.errors import DataError
from deit_fast.runtime.philox import Stream, uniform

_ATTEMPTS = 64  # if half of the images are bad, one sample in 2^64 needs more


class Substitutes:
    """Chooses substitutes among `images` images.

    The substitute of a sample is the first usable image in a series that is drawn from (seed, epoch, index). It gets
    the crop and the operations that were drawn for the sample. Whether DALI refuses an image can depend on the window
    that it decodes, so a refusal is valid for one sample only. `suspects` therefore holds images that DALI has refused
    before, not verdicts. A suspect is tested alone before each later use. This affects when a refusal is found, and not
    which substitute is chosen.

    windows: whether the pipeline decodes a window of each image, which is the second of its inputs.
    """

    def __init__(self, images: int, seed: int, device: torch.device, windows: bool) -> None:
        self.suspects: set[int] = set()
        """Indices of images that DALI has refused before."""
        self._images, self._seed, self._device, self._windows = images, seed, device, windows

    def choose(self, epoch: int, index: int, attempt: int, error: DataError) -> int:
        """Candidate number `attempt` to replace image `index`. Raises DataError with the last error at attempt 64."""
        if attempt == _ATTEMPTS:
            raise DataError(f"{error}; nor could any of {_ATTEMPTS} others be used in its place")
        place = np.array([index]), np.zeros(1, np.int64)
        return int(uniform(self._seed, Stream.SUBSTITUTE, epoch, *place, _ATTEMPTS)[0, attempt] * self._images)

    def refused(self, inputs: list[Any], places: NDArray[np.int64]) -> list[int]:
        """Those of the places [n] in a batch, given as the pipeline's inputs, whose image DALI cannot decode."""
        encoded = [inputs[0][place] for place in places]
        found = find_refused(encoded, inputs[1][places] if self._windows else None, self._device)
        return places[found].tolist()
