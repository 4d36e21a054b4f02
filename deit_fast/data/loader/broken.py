"""Images that DALI refuses: finds them in a batch, and describes the fault. Used only after DALI has failed."""

from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from deit_fast.data.loader.pipeline import decodes, small_image
from deit_fast.data.sources.base import Source
from deit_fast.data.sources.headers import UNIDENTIFIED, open_image
from deit_fast.runtime.errors import DataError, one_line, printable

_CPU = torch.device("cpu")


def raise_culprit(
    source: Source, indices: NDArray[np.int64], encoded: list[NDArray[np.uint8]], error: RuntimeError
) -> NoReturn:
    """Raise DataError for the first image of the failed batch that cannot be decoded alone, else DALI's own error.

    indices: [B], images of the source; encoded: the bytes of each.
    """
    for index, data in zip(indices.tolist(), encoded, strict=True):
        if pil_complaint(data) or not decodes([data], _CPU):
            raise DataError(describe_refusal(source, index, data)) from error
    raise error


def find_refused(
    encoded: list[NDArray[np.uint8]], windows: NDArray[np.int32] | None, device: torch.device, threads: int = 1
) -> list[int]:
    """Places of the encoded images, uint8 [bytes] each, that DALI cannot decode on the device; found by halving.

    windows: int32 [B, 4], where windows of the images alone are decoded. The list is empty where the device cannot
    decode anything: then it is not the images.
    """
    if not encoded or decodes(encoded, device, windows, threads) or not decodes([small_image()], device):
        return []

    def search(places: list[int]) -> list[int]:
        """Of places among which there is a refused one."""
        if len(places) == 1:
            return places
        middle = len(places) // 2
        return [place for half in (places[:middle], places[middle:]) if fails(half) for place in search(half)]

    def fails(places: list[int]) -> bool:
        chosen = None if windows is None else windows[places]
        return not decodes([encoded[place] for place in places], device, chosen, threads)

    return search(list(range(len(encoded))))


def describe_refusal(source: Source, index: int, encoded: NDArray[np.uint8]) -> str:
    """The fault of an image that cannot be decoded, in one line. encoded: uint8 [bytes]."""
    reason = pil_complaint(encoded) or "DALI refuses it"
    return f"{printable(source.name(index))}: expected an image that can be decoded ({reason})"


def without_name(source: Source, index: int, error: DataError) -> str:
    """The reason in an image's DataError, without the image's name before it."""
    return str(error).removeprefix(f"{printable(source.name(index))}: ")


def pil_complaint(encoded: NDArray[np.uint8]) -> str:
    """PIL's reason why it cannot decode the image, encoded uint8 [bytes]; "" if it can."""
    try:
        with open_image(encoded) as image:
            image.load()
    except UnidentifiedImageError:  # its text contains an address
        return UNIDENTIFIED
    except Exception as error:  # PIL's decoders raise many kinds
        return one_line(error) or type(error).__name__
    return ""
