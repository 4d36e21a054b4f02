"""Runs one contender of `benchmarks streaming`; a script, so that the Python of another environment can run it.

    python contenders.py NAME URL CACHE encoded|decoded LIMIT_BYTES

It reads two epochs and prints one JSON: seconds to the first batch and for each epoch, images, requests to the store,
disk, memory and CPU time. Each contender imports its own package and none of the others.
"""

import contextlib
import io
import itertools
import json
import os
import sys
import tarfile
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

BATCH = 64
EPOCHS = 2
_DOWNLOADS = 16
Sample = tuple[bytes, int]
"""Encoded image, and its class."""
Batches = Iterator[list[Sample]]
Open = Callable[[str, Path, int | None], Iterator[Batches]]
"""(URL, cache folder, its limit in bytes) -> EPOCHS epochs. Making it imports the package, which is not timed."""


def download() -> Open:
    """Downloads whole shards with 16 threads and reads their classes only: the network alone."""
    import urllib3

    pool = urllib3.PoolManager(maxsize=_DOWNLOADS)

    def fetch(url: str) -> list[Sample]:
        with tarfile.open(fileobj=io.BytesIO(pool.request("GET", url).data)) as archive:
            labels = [archive.extractfile(each) for each in archive.getmembers()[1::2]]
            return [(b"", int(label.read())) for label in labels if label is not None]

    def open_epochs(url: str, cache: Path, limit: int | None) -> Iterator[Batches]:
        for _ in range(EPOCHS):
            with ThreadPoolExecutor(_DOWNLOADS) as threads:
                yield threads.map(fetch, [f"{url}/{name}" for name in json.loads(os.environ["SHARDS"])])

    return open_epochs


def webdataset() -> Open:
    """Over HTTP with one worker.

    The shards, and a buffer of 1,000 samples, are shuffled; nothing is kept on the disk.
    """
    from webdataset import WebDataset, WebLoader

    def open_epochs(url: str, cache: Path, limit: int | None) -> Iterator[Batches]:
        names = json.loads(os.environ["SHARDS"])
        data = WebDataset([f"{url}/{name}" for name in names], shardshuffle=len(names), empty_check=False)
        data = data.shuffle(1000).to_tuple("jpg;jpeg;png", "cls").map_tuple(_same, int)
        loader = WebLoader(data, batch_size=BATCH, num_workers=1, collate_fn=list)
        yield from (iter(loader) for _ in range(EPOCHS))

    return open_epochs


def mosaic() -> Open:
    """From S3 in this process, with its default shuffle (py1e)."""
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    def open_epochs(url: str, cache: Path, limit: int | None) -> Iterator[Batches]:
        data = StreamingDataset(remote=url, local=str(cache), shuffle=True, batch_size=BATCH, cache_limit=limit)
        loader = DataLoader(data, batch_size=BATCH, num_workers=0, collate_fn=_rows)
        yield from (iter(loader) for _ in range(EPOCHS))

    return open_epochs


def litdata() -> Open:
    """From S3 with one worker, shuffled."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.resolver import Dir

    def open_epochs(url: str, cache: Path, limit: int | None) -> Iterator[Batches]:
        options: dict[str, Any] = {"max_cache_size": limit} if limit else {}
        store = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
        place = Dir(path=str(cache), url=url)
        data = StreamingDataset(input_dir=place, shuffle=True, storage_options=store, **options)
        loader = StreamingDataLoader(data, batch_size=BATCH, num_workers=1, collate_fn=_rows)
        yield from (iter(loader) for _ in range(EPOCHS))

    return open_epochs


def _rows(samples: list[dict[str, Any]]) -> list[Sample]:
    return [(bytes(sample["jpg"]), sample["cls"]) for sample in samples]  # litdata's views cannot be sent


def _same(value: bytes) -> bytes:
    return value


def decode() -> Callable[[Batches], Batches]:
    """Decodes a contender's batches with a plain DALI graph of two CPU threads: random crops of 224 px, flipped."""
    from nvidia import dali

    def run(batches: Batches) -> Batches:
        given: deque[list[Sample]] = deque()  # DALI asks for two batches before it returns one

        def feed() -> Iterator[list[np.ndarray]]:
            for samples in batches:
                for start in range(0, len(samples), BATCH):
                    given.append(samples[start : start + BATCH])
                    yield [np.frombuffer(image, np.uint8) for image, _ in given[-1]]

        @dali.pipeline_def(batch_size=BATCH, num_threads=2, device_id=None)
        def graph() -> Any:
            encoded = dali.fn.external_source(source=feed(), dtype=dali.types.UINT8, ndim=1)
            images = dali.fn.decoders.image_random_crop(encoded, output_type=dali.types.RGB)
            images = dali.fn.resize(images, size=(224, 224), interp_type=dali.types.INTERP_CUBIC, antialias=True)
            return dali.fn.flip(images, horizontal=dali.fn.random.coin_flip())

        pipeline = graph()
        with contextlib.suppress(StopIteration):
            while True:
                pipeline.run()
                yield given.popleft()

    return run


def ours(decodes: bool) -> Open:
    """The product's loader, of both builds: with the plain graph's crops and flips, or without decoding."""
    import boto3  # noqa: F401 (as the peers, whose imports are over before anything is timed)
    import nvidia.dali  # noqa: F401
    import s3fs  # noqa: F401
    import torch

    from deit_fast.data.loader import sampler
    from deit_fast.data.loader.batches import TrainLoader
    from deit_fast.data.sources.open import open_source
    from deit_fast.recipe.table import get_recipe

    class Undecoded(TrainLoader):
        """Also takes the place of DALI's pipeline."""

        def _build_pipeline(self) -> Any:
            return self

        def run(self) -> torch.Tensor:
            self._feed()
            return torch.empty(0)

        def reset(self) -> None:
            pass

    def open_epochs(url: str, cache: Path, limit: int | None) -> Iterator[Batches]:
        words = [
            "data.repeats=1",
            "augment.policy=none",
            "augment.color_jitter=0",
            f"run.global_batch={BATCH}",
            "model.num_classes=null",
        ]
        if limit is not None:
            words += [f"data.block={os.environ['BLOCK']}", f"data.cache_limit={limit / 2**30}"]
        recipe = get_recipe("deit3_small_1k_224", words)
        source = open_source(url, "train")
        if hasattr(sampler, "build_order"):
            from deit_fast.data.loader.streaming_plan import check_disk

            samplers = sampler.build_samplers(recipe, sampler.build_order(recipe, source), 0, 1)
            check_disk(recipe.data, source, samplers[0].node_lanes)
        else:  # the earlier build
            build: Any = sampler.build_samplers
            samplers = build(recipe, len(source), 0, 1)
        steps = samplers[0].steps_per_epoch
        loader = (TrainLoader if decodes else Undecoded)(
            source, recipe.augment, 224, samplers, 0, torch.device("cpu"), 2, stop_step=EPOCHS * steps
        )
        batches = ([(b"", label) for label in batch.labels.tolist()] for batch in loader)
        yield from (itertools.islice(batches, steps) for _ in range(EPOCHS))

    return open_epochs


PEERS: dict[str, Callable[[], Open]] = {
    "download": download,
    "webdataset": webdataset,
    "mosaic": mosaic,
    "litdata": litdata,
}


class Peak(threading.Thread):
    """The largest disk use of the files below a folder, sampled twenty times a second."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._bytes, self._folder, self._ended = 0, folder, threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.05):
            self._bytes = max(self._bytes, disk_bytes(self._folder))

    def end(self) -> int:
        self._ended.set()
        self.join()
        return max(self._bytes, disk_bytes(self._folder))


def disk_bytes(folder: Path) -> int:
    """Bytes on the disk, without holes; a file that disappears meanwhile does not count."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def asked() -> dict[str, int]:
    """The number of requests to the store so far."""
    with urllib.request.urlopen(f"{os.environ['STORE']}/_requests") as answer:
        log = json.load(answer)
    ranges = sum("range" in each["headers"] for each in log)
    return {"requests": len(log), "range_requests": ranges, "bytes": sum(each["sent"] for each in log)}


def family() -> list[psutil.Process]:
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def cpu_seconds() -> float:
    """CPU seconds of this process and its children, including those that have ended."""
    return sum(sum(each.cpu_times()[:2]) for each in family()) + sum(psutil.Process().cpu_times()[2:4])


def read(name: str, url: str, cache: Path, decodes: bool, limit: int | None) -> dict[str, Any]:
    """Reads the epochs as fast as possible. Time starts after all imports, with nothing opened."""
    is_peer = name in PEERS
    open_epochs = PEERS[name]() if is_peer else ours(decodes)
    finish = decode() if decodes and is_peer else iter
    peak, cpu, start = Peak(cache), cpu_seconds(), time.perf_counter()
    peak.start()
    epochs, first, block, begun, before = list[dict[str, Any]](), 0.0, int(os.environ["BLOCK_IMAGES"]), start, asked()
    for batches in open_epochs(url, cache, limit):
        labels, later = list[int](), (0.0, 0)
        for samples in finish(batches):
            now = time.perf_counter()
            first = first or now - start
            labels += [label for _, label in samples]
            if not later[1] and len(labels) >= block:
                later = now, len(labels)
        ended, after = time.perf_counter(), asked()
        epochs.append({
            "images": len(labels), "distinct": len(set(labels)), "seconds": ended - begun,
            "later_images_per_second": (len(labels) - later[1]) / (ended - later[0]),
            **{key: after[key] - before[key] for key in after},
        })  # fmt: skip
        begun, before = ended, after
    pss = sum(each.memory_full_info().pss for each in family())
    return {"first_batch_seconds": first, "epochs": epochs, "peak_disk_bytes": peak.end(), "pss_bytes": pss,
            "cpu_seconds": cpu_seconds() - cpu}  # fmt: skip


def main(name: str, url: str, cache: str, case: str, limit: str) -> None:
    print(json.dumps(read(name, url, Path(cache), case == "decoded", int(limit) or None)), flush=True)
    os._exit(0)  # ends without waiting for the contenders' workers


if __name__ == "__main__":
    main(*sys.argv[1:])
