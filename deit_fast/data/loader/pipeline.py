"""The DALI pipelines of training and evaluation: encoded bytes and drawn parameters in, uint8 views [B, 3, S, S] out.

CPU and GPU are one argument apart. DALI is imported here and nowhere earlier, when a pipeline is built.
"""

import io
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from deit_fast.data.augment.policies import POLICIES, operation_names
from deit_fast.data.augment.view_params import ViewParams
from deit_fast.data.loader.tuning import HW_DECODER_LOAD
from deit_fast.recipe.sections import Augment
from deit_fast.runtime.errors import RunError

Feed = Callable[[], list[Any]]
"""Gives one batch of inputs per call: a list of encoded images, then one array [B, ...] per parameter. Raises
StopIteration at the end."""

_PREFETCH = 2  # batches in flight inside DALI: one being decoded while the other is handed over


class Pipeline:
    """A built DALI pipeline. `run` gives the next batch; it raises StopIteration after the feed's last one.

    conditionals: whether `graph` has an `if` about a node, for which DALI rewrites its functions: half a second's work.
    """

    def __init__(
        self, graph: Callable[..., Any], names: Sequence[str], feed: Feed, batch: int, device: torch.device,
        threads: int, prefetch: int = _PREFETCH, conditionals: bool = False,
    ) -> None:  # fmt: skip
        dali = import_dali()
        self._on_gpu, self._device = device.type == "cuda", device
        self._held: deque[torch.Tensor | RuntimeError] = deque()

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
        """uint8 [B, 3, S, S] in channels_last memory, DALI's own: it stays valid for as long as it is referenced."""
        if self._held:
            held = self._held.popleft()
            if isinstance(held, RuntimeError):
                raise held
            return held
        self._pipeline.schedule_run()  # not run(), beside which DALI refuses outputs()
        return self._take(self._pipeline.outputs)

    def settle(self) -> None:
        """Waits until DALI's threads work on nothing. What they had begun comes with the next calls of `run`."""
        while not self._pipeline.empty():
            try:
                self._held.append(self._take(self._pipeline.outputs))
            except RuntimeError as error:
                self._held.append(error)
                return

    def _take(self, give: Callable[..., Any]) -> torch.Tensor:
        # Naming the consumer's stream spares a wait for the GPU.
        (views,) = give(torch.cuda.current_stream(self._device)) if self._on_gpu else give()
        return torch.from_dlpack(views.as_tensor()).permute(0, 3, 1, 2)

    def reset(self) -> None:
        """Make the pipeline, run to its end, ask its feed again."""
        self._pipeline.reset()


def import_dali() -> Any:
    """The nvidia.dali module. Raises RunError, one line, where it is not installed."""
    try:
        import nvidia.dali
        import nvidia.dali.fn
        import nvidia.dali.math
    except ImportError as error:
        raise RunError(
            f"nvidia-dali is not installed: pip install 'deit_fast[cuda12]', or [cuda13] for CUDA 13 drivers ({error})"
        ) from None
    return nvidia.dali


def train_pipeline(
    augment: Augment,
    image_size: int,
    feed: Feed,
    batch: int,
    device: torch.device,
    threads: int,
    decode_once: bool = False,
    hw_decoder_load: float = HW_DECODER_LOAD,
    roi_decode: bool = False,
) -> Pipeline:
    """Augmented views, uint8 [B, 3, S, S]; `feed` gives what `train_inputs` returns, of exactly `batch` views.

    decode_once: an image with several views in the batch is decoded for the first of them.
    hw_decoder_load: share of the images that a GPU's decoding engines get.
    roi_decode: on GPUs decode no more than a view's window, as CPUs do.
    Raises RunError where DALI is missing, RecipeError for an operation of augment.rand_extra that is not there.
    """
    import_dali()
    from nvidia.dali import fn, types

    from deit_fast.data.augment.resize import resize
    from deit_fast.data.augment.view_graph import augment_views, resize_and_window

    if augment.policy in POLICIES:
        from deit_fast.data.augment.policy_graph import find_operations

        find_operations(operation_names(augment))  # here, because DALI wraps what is raised inside a graph
    on_gpu = device.type == "cuda"

    def decode(encoded: Any, parameters: dict[str, Any]) -> Any:
        images = decode_images(encoded, on_gpu, hw_decoder_load)
        # The places of an image's other views have held a small image until here.
        return fn.permute_batch(images, indices=parameters["first_view"]) if decode_once else images

    def graph(encoded: Any, parameters: dict[str, Any]) -> Any:
        geometry = parameters["geometry"]
        kernel = types.INTERP_LINEAR if augment.interpolation == "bilinear" else types.INTERP_CUBIC
        if augment.interpolation == "random":
            kernel = parameters["kernel"]
        if decodes_windows(augment, decode_once):
            windows = decode_window(encoded, geometry, on_gpu, hw_decoder_load, roi_decode)
            views = resize(windows, [image_size, image_size], kernel)
        elif crops_first(augment):
            views = resize(_window(decode(encoded, parameters), geometry), [image_size, image_size], kernel)
        else:
            whole = decode(encoded, parameters)
            views = resize_and_window(
                whole, geometry, image_size, kernel, border="pad" if augment.crop == "pad" else "reflect_101"
            )
        return augment_views(views, augment, parameters["flip"], parameters, image_size)

    names, chooses = _train_names(augment, decode_once), augment.policy != "none" or augment.color_jitter > 0
    return Pipeline(graph, names, feed, batch, device, threads, conditionals=chooses)


def eval_pipeline(
    image_size: int, feed: Feed, batch: int, device: torch.device, threads: int, interpolation: str = "bicubic"
) -> Pipeline:
    """Resized and centre-cropped images, uint8 [B, 3, S, S]; `feed` gives encoded images and `eval_geometry` [B, 4].

    interpolation: data.eval_interpolation.
    """
    types = import_dali().types
    from deit_fast.data.augment.view_graph import resize_and_window

    on_gpu = device.type == "cuda"

    def graph(encoded: Any, parameters: dict[str, Any]) -> Any:
        kernel = types.INTERP_LINEAR if interpolation == "bilinear" else types.INTERP_CUBIC
        return resize_and_window(decode_images(encoded, on_gpu), parameters["geometry"], image_size, kernel)

    return Pipeline(graph, ["geometry"], feed, batch, device, threads)


def train_inputs(
    augment: Augment,
    image_size: int,
    encoded: list[NDArray[np.uint8]],
    params: ViewParams,
    decode_once: bool = False,
) -> list[Any]:
    """One batch as `train_pipeline` takes it: B encoded images, then the parameters [B, ...] that the graph has.

    decode_once: views of an image are known by being given the same array.
    """
    types = import_dali().types
    available: dict[str, NDArray[Any]] = {
        "geometry": params.geometry,
        "kernel": np.array([types.INTERP_CUBIC, types.INTERP_LINEAR], np.int32)[params.interpolation],
        "flip": params.flip,
        "operation": params.operation,
        "sigma": params.sigma,
        "order": params.order,
        "factors": np.take_along_axis(params.jitter, params.order, axis=1),
    }
    if augment.policy in POLICIES:
        from deit_fast.data.augment.policy_graph import operation_arguments

        drawn = params.policy_op, params.policy_level, params.policy_sign
        available |= operation_arguments(operation_names(augment), *drawn, image_size)
    if decode_once:
        first: dict[int, int] = {}
        places = [first.setdefault(id(data), place) for place, data in enumerate(encoded)]
        encoded = [data if places[place] == place else small_image() for place, data in enumerate(encoded)]
        available["first_view"] = np.array(places, np.int32)
    return [encoded, *(available[name] for name in _train_names(augment, decode_once))]


def decodes(
    encoded: list[NDArray[np.uint8]],
    device: torch.device,
    windows: NDArray[np.int32] | None = None,
    threads: int = 1,
) -> bool:
    """Whether DALI decodes all of these images, or windows [B, 4] (top, left, height, width) of them, as training does.

    A pipeline is built for it: that takes some milliseconds.
    """
    dali = import_dali()

    def graph(data: Any, parameters: dict[str, Any]) -> Any:
        on_gpu = device.type == "cuda"
        images = decode_images(data, on_gpu) if windows is None else decode_window(data, parameters["window"], on_gpu)
        return dali.fn.resize(images, size=[1, 1])

    names, inputs = ([], [encoded]) if windows is None else (["window"], [encoded, windows])
    try:
        Pipeline(graph, names, lambda: inputs, len(encoded), device, threads, prefetch=1).run()
    except RuntimeError:
        return False
    return True


def crops_first(augment: Augment) -> bool:
    """Whether a view is a window of the image as stored, its geometry, which is then resized to S x S."""
    return augment.crop in ("rrc", "rrc_linear")


def decodes_windows(augment: Augment, decode_once: bool) -> bool:
    """Whether `train_pipeline` decodes no more than each view's window, its inputs' geometry."""
    return crops_first(augment) and not decode_once


@cache
def small_image() -> NDArray[np.uint8]:
    """A JPEG of 16 x 16 px, uint8 [bytes], that any decoder takes, at next to no cost."""
    stored = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stored, "JPEG")
    return np.frombuffer(stored.getvalue(), np.uint8)


def _train_names(augment: Augment, decode_once: bool) -> list[str]:
    names = ["geometry", "flip", *(["first_view"] if decode_once else [])]
    if augment.interpolation == "random":
        names.append("kernel")
    if augment.policy == "three_augment":
        names += ["operation", "sigma"]
    if augment.policy in POLICIES:
        names += ["policy_branch", "policy_arguments"]
    if augment.color_jitter:
        names += ["order", "factors"]
    return names


def decode_images(encoded: Any, on_gpu: bool, hw_decoder_load: float = HW_DECODER_LOAD) -> Any:
    """Encoded -> uint8 [H, W, 3], RGB as stored: like PIL, unlike DALI's default, an EXIF rotation is not applied."""
    return import_dali().fn.decoders.image(encoded, **_decoder_arguments(on_gpu, hw_decoder_load))


def decode_window(
    encoded: Any, geometry: Any, on_gpu: bool, hw_decoder_load: float = HW_DECODER_LOAD, region: bool = False
) -> Any:
    """The window geometry (top, left, height, width; int32 [4], px) of the image, uint8 [height, width, 3].

    region: on GPUs, decode no more than that. It crashes in some versions of nvImageCodec (its issue 55): `roi_probe`.
    """
    if on_gpu and not region:
        return _window(decode_images(encoded, on_gpu, hw_decoder_load), geometry)
    return import_dali().fn.decoders.image_slice(
        encoded, **_decoder_arguments(on_gpu, hw_decoder_load), **named_window(geometry)
    )


def _decoder_arguments(on_gpu: bool, hw_decoder_load: float) -> dict[str, Any]:
    where = {"device": "mixed", "hw_decoder_load": hw_decoder_load} if on_gpu else {"device": "cpu"}
    # Fancy upsampling is what libjpeg does to the chroma; nvJPEG does not unless it is told to.
    return {**where, "adjust_orientation": False, "jpeg_fancy_upsampling": True}


def _window(images: Any, geometry: Any) -> Any:
    return import_dali().fn.slice(images, **named_window(geometry))


def named_window(geometry: Any) -> dict[str, Any]:
    """The window (top, left, height, width) as DALI's slices take it."""
    return {"start": geometry[0:2], "shape": geometry[2:4], "axis_names": "HW"}


def _device_index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
