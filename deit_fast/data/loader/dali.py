"""The one module that imports DALI: a pipeline around a graph, and the decoders with which all graphs begin."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from deit_fast.runtime.errors import RunError

Feed = Callable[[], list[Any]]
"""Returns one batch of inputs per call: a list of encoded images, then one array [B, ...] per parameter. Raises
StopIteration at the end."""

HW_DECODER_LOAD = 0.65
"""DALI's default share of the JPEGs that a GPU's decoding engines get; CPU threads and CUDA cores decode the rest."""
_PREFETCH = 2  # batches in flight inside DALI: one is decoded while the other is handed over


class Pipeline:
    """A built DALI pipeline. `run` returns the next batch, and raises StopIteration after the feed's last batch.

    conditionals: whether `graph` contains an `if` on a node; DALI then rewrites the graph's functions, which takes half
    a second.
    """

    def __init__(
        self,
        graph: Callable[..., Any],
        names: Sequence[str],
        feed: Feed,
        batch: int,
        device: torch.device,
        threads: int,
        prefetch: int = _PREFETCH,
        conditionals: bool = False,
    ) -> None:
        dali = import_dali()
        self._on_gpu, self._device = device.type == "cuda", device

        def definition() -> Any:
            encoded, *nodes = dali.fn.external_source(source=feed, num_outputs=1 + len(names), batch=True)
            return graph(encoded, {name: nodes[place] for place, name in enumerate(names)})

        self._pipeline = dali.pipeline_def(definition, enable_conditionals=conditionals)(
            batch_size=batch,
            num_threads=threads,
            device_id=_device_index(device) if self._on_gpu else None,
            prefetch_queue_depth=prefetch,
        )
        self._pipeline.build()

    def run(self) -> torch.Tensor:
        """uint8 [B, 3, S, S] in channels_last memory of DALI's, which stays valid as long as it is referenced."""
        if self._on_gpu:  # naming the consumer's stream avoids a wait for the GPU
            (views,) = self._pipeline.run(torch.cuda.current_stream(self._device))
        else:
            (views,) = self._pipeline.run()
        return torch.from_dlpack(views.as_tensor()).permute(0, 3, 1, 2)

    def reset(self) -> None:
        """Makes a pipeline that ran to its end ask its feed again."""
        self._pipeline.reset()


def import_dali() -> Any:
    """The nvidia.dali module. Raises RunError, one line, where it is not installed."""
    try:
        import nvidia.dali
        import nvidia.dali.fn
    except ImportError as error:
        raise RunError(
            f"nvidia-dali is not installed: pip install 'deit_fast[cuda12]', or [cuda13] for CUDA 13 drivers ({error})"
        ) from None
    return nvidia.dali


def decode_images(encoded: Any, on_gpu: bool, hw_decoder_load: float = HW_DECODER_LOAD) -> Any:
    """Encoded -> uint8 [H, W, 3], RGB as stored: as in PIL, and unlike DALI's default, EXIF rotation is not applied."""
    return import_dali().fn.decoders.image(encoded, **_decoder_arguments(on_gpu, hw_decoder_load))


def decode_window(encoded: Any, geometry: Any, on_gpu: bool, hw_decoder_load: float = HW_DECODER_LOAD) -> Any:
    """The window `geometry` (top, left, height, width; int32 [4], px) of the image, uint8 [height, width, 3].

    CPUs decode this window only. GPUs decode the whole image, because nvImageCodec 0.9.0 crashes on windows there (its
    issue 55).
    """
    if on_gpu:
        return window(decode_images(encoded, on_gpu, hw_decoder_load), geometry)
    return import_dali().fn.decoders.image_slice(
        encoded, **_decoder_arguments(on_gpu, hw_decoder_load), **named_window(geometry)
    )


def _decoder_arguments(on_gpu: bool, hw_decoder_load: float) -> dict[str, Any]:
    where = {"device": "mixed", "hw_decoder_load": hw_decoder_load} if on_gpu else {"device": "cpu"}
    # Fancy upsampling is libjpeg's way of scaling chroma up; nvJPEG uses it only on request.
    return {**where, "adjust_orientation": False, "jpeg_fancy_upsampling": True}


def window(images: Any, geometry: Any) -> Any:
    """The window geometry (top, left, height, width; int32 [4], px) of uint8 [H, W, 3] images."""
    return import_dali().fn.slice(images, **named_window(geometry))


def named_window(geometry: Any) -> dict[str, Any]:
    """The window (top, left, height, width) as DALI's slices take it."""
    return {"start": geometry[0:2], "shape": geometry[2:4], "axis_names": "HW"}


def _device_index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
