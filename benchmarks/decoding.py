"""JPEG decoding with DALI, on a GPU at three shares of the hardware decoders, against PIL: pixels and speed."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from deit_fast.data.loader.dali import decode_images, import_dali
from deit_fast.runtime.hardware import cpu_threads

from .images import open_images
from .measure import Row, Session, interleave, rate

LOADS = (0.0, 0.65, 1.0)
Pixels = NDArray[np.uint8]


def run(session: Session, data: str | None) -> None:
    """One row per share: images/s, and differences of its pixels from PIL's and from those of the share 0.

    On CPUs the share has no effect, so there is one row.
    """
    on_gpu = session.device.type == "cuda"
    batch = 32 if session.quick else 128
    with open_images(data, session.quick, batch) as (source, described):
        session.settings = {"data": described, "threads": cpu_threads(), "batch": batch}
        encoded = [source.read(index) for index in range(len(source))]
    expected = [np.asarray(Image.open(io.BytesIO(each.tobytes())).convert("RGB")) for each in encoded]
    pipelines: dict[float, _Decoder] = {}
    for load in LOADS if on_gpu else LOADS[:1]:
        decoder = pipelines[load] = _Decoder(encoded, load, session.device)
        found, name = decoder.pixels(), f"share {load:g}"
        row: Row = {"case": name, "over_pil": _differences(found, expected)}
        if load:
            row["over_no_engine"] = _differences(found, pipelines[LOADS[0]].pixels())
        for against in ("over_pil", "over_no_engine"):
            for kind, value in row.get(against, {}).items():
                session.note(f"{name} {against} {kind}", value, "of 255" if kind != "different" else "% of values")
        session.add(row)

    def call(decoder: "_Decoder") -> Callable[[], object]:
        return lambda: decoder.decode()

    def known(name: str, timing: Any) -> None:
        session.note(f"{name} decoded", len(encoded) / timing.seconds["median"], "images/s")

    timed, errors = interleave(
        {f"share {load:g}": call(decoder) for load, decoder in pipelines.items()}, session.device, session.say,
        repeats=session.repeats, seconds=session.seconds(0.1, 1.0), known=known,
    )  # fmt: skip
    for row in session.rows:
        row["errors"] = errors
        if row["case"] in timed:
            row["images_per_second"] = rate(len(encoded), timed[row["case"]].seconds)


class _Decoder:
    """A pipeline that decodes the same JPEGs again and again."""

    def __init__(self, encoded: list[Pixels], load: float, device: torch.device) -> None:
        on_gpu, dali = device.type == "cuda", import_dali()
        index = torch.cuda.current_device() if on_gpu else None
        pipeline = dali.pipeline_def(
            lambda: decode_images(
                dali.fn.external_source(source=lambda: encoded, batch=True, device="cpu"), on_gpu, load
            ),
            batch_size=len(encoded), num_threads=cpu_threads(), device_id=index,
        )()  # fmt: skip
        pipeline.build()
        self._pipeline = pipeline

    def decode(self) -> Any:
        """DALI's list of uint8 [H, W, 3]."""
        return self._pipeline.run()[0]

    def pixels(self) -> list[Pixels]:
        """The same images, in host memory."""
        return [np.array(image) for image in self.decode().as_cpu()]


def _differences(found: list[Pixels], expected: list[Pixels]) -> dict[str, float]:
    """For values from 0 to 255: mean and largest difference, and the percentage of values that differ."""
    gaps = [np.abs(mine.astype(int) - theirs) for mine, theirs in zip(found, expected, strict=True)]
    every = np.concatenate([gap.ravel() for gap in gaps])
    return {"mean": float(every.mean()), "most": float(every.max()), "different": 100 * float((every > 0).mean())}
