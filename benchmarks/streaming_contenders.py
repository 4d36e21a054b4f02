"""One contender of `benchmarks streaming`, run as a script: its format written, or an epoch of it read from a store.

    python streaming_contenders.py write NAME SHARDS OUT SHARD_BYTES
    python streaming_contenders.py read NAME URL CACHE encoded|decoded LIMIT_BYTES

Each contender imports its own package and nothing else, so that an environment that has only this package will do.
`read` reads two epochs and prints one JSON: seconds to the first batch and for each epoch, images, what was asked of
the store, disk, memory and CPU time.
"""

import io
import json
import os
import sys
import tarfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil

BATCH = 64
EPOCHS = 2
_DOWNLOADS = 16
Sample = tuple[bytes, int]
"""Encoded image and its class."""
Batches = Iterator[list[Sample]]
Open = Callable[[str, Path, int | None], Iterator[Batches]]
"""(URL, folder for what it keeps, most bytes of it) -> EPOCHS epochs. Its making imports the package, untimed."""


def read_samples(shards: Path) -> Iterator[Sample]:
    """Encoded image and class of every sample of the tar shards in a folder, in their order."""
    for shard in sorted(shards.glob("train-*.tar")):
        with open(shard, "rb") as file:
            yield from unpack(file)


def unpack(file: IO[bytes]) -> Iterator[Sample]:
    """The samples of one tar shard."""
    with tarfile.open(fileobj=file) as archive:
        members = archive.getmembers()
        for image, label in zip(members[::2], members[1::2], strict=True):
            contents = [archive.extractfile(each) for each in (image, label)]
            data, number = (each.read() for each in contents if each is not None)
            yield data, int(number)


def write_mosaic(shards: Path, out: Path, shard_bytes: int) -> None:
    from streaming import MDSWriter

    with MDSWriter(out=str(out), columns={"jpg": "bytes", "cls": "int"}, size_limit=shard_bytes) as writer:
        for image, label in read_samples(shards):
            writer.write({"jpg": image, "cls": label})


def write_litdata(shards: Path, out: Path, shard_bytes: int) -> None:
    import litdata

    samples = list(read_samples(shards))
    litdata.optimize(_index_of, [(index, *samples[index]) for index in range(len(samples))], str(out),
                     chunk_bytes=shard_bytes, num_workers=1, verbose=False)  # fmt: skip


def _index_of(sample: tuple[int, bytes, int]) -> dict[str, Any]:
    return {"jpg": sample[1], "cls": sample[2]}


def download() -> Open:
    """Whole shards by 16 threads, which are unpacked and thrown away: what ours does after its first block, alone."""
    import urllib3

    pool = urllib3.PoolManager(maxsize=_DOWNLOADS)

    def fetch(url: str) -> list[Sample]:
        return list(unpack(io.BytesIO(pool.request("GET", url).data)))

    def open_epochs(url: str, cache: Path, limit: int | None) -> Iterator[Batches]:
        for _ in range(EPOCHS):
            with ThreadPoolExecutor(_DOWNLOADS) as threads:
                yield threads.map(fetch, [f"{url}/{name}" for name in json.loads(os.environ["SHARDS"])])

    return open_epochs


def webdataset() -> Open:
    """Over HTTP with one worker; the shards and a buffer of 1,000 samples are shuffled, nothing is kept on the disk."""
    from webdataset import WebDataset, WebLoader

    def open_epochs(url: str, cache: Path, limit: int | None) -> Iterator[Batches]:
        names = json.loads(os.environ["SHARDS"])
        data = WebDataset([f"{url}/{name}" for name in names], shardshuffle=len(names), empty_check=False)
        data = data.shuffle(1000).to_tuple("jpg;jpeg;png", "cls").map_tuple(_same, int)
        loader = WebLoader(data, batch_size=BATCH, num_workers=1, collate_fn=list)
        yield from (iter(loader) for _ in range(EPOCHS))

    return open_epochs


def mosaic() -> Open:
    """From S3 in this process, shuffled as it does by default (py1e)."""
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
    return [(bytes(sample["jpg"]), sample["cls"]) for sample in samples]  # a view of litdata cannot be sent


def _same(value: bytes) -> bytes:
    return value


def decode() -> Callable[[Batches], Batches]:
    """What a plain DALI graph of two CPU threads makes of a contender's batches: random crops of 224 px, flipped."""
    from nvidia import dali

    @dali.pipeline_def(batch_size=BATCH, num_threads=2, device_id=None)
    def graph() -> Any:
        encoded = dali.fn.external_source(name="encoded", dtype=dali.types.UINT8, ndim=1)
        images = dali.fn.decoders.image_random_crop(encoded, output_type=dali.types.RGB)
        images = dali.fn.resize(images, size=(224, 224), interp_type=dali.types.INTERP_CUBIC, antialias=True)
        return dali.fn.flip(images, horizontal=dali.fn.random.coin_flip())

    def run(batches: Batches) -> Batches:
        pipeline = graph()
        pipeline.build()
        for samples in batches:
            for start in range(0, len(samples), BATCH):
                part = samples[start : start + BATCH]
                pipeline.feed_input("encoded", [np.frombuffer(image, np.uint8) for image, _ in part])
                pipeline.run()
                yield part

    return run


def ours() -> Open:
    """The product's loader; at the earlier build too."""
    raise NotImplementedError


WRITERS: dict[str, Callable[[Path, Path, int], None]] = {"mosaic": write_mosaic, "litdata": write_litdata}
READERS: dict[str, Callable[[], Open]] = {
    "ours": ours,
    "before": ours,
    "download": download,
    "webdataset": webdataset,
    "mosaic": mosaic,
    "litdata": litdata,
}


class Peak(threading.Thread):
    """The most bytes that the files below a folder took, looked at twenty times a second."""

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
    """Bytes on the disk, which holes do not take; a file that goes away meanwhile counts as gone."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def asked() -> dict[str, int]:
    """What the store was asked so far."""
    with urllib.request.urlopen(f"{os.environ['STORE']}/_requests") as answer:
        log = json.load(answer)
    ranges = sum("range" in each["headers"] for each in log)
    return {"requests": len(log), "range_requests": ranges, "bytes": sum(each["sent"] for each in log)}


def family() -> list[psutil.Process]:
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def cpu_seconds() -> float:
    """Of this process and its children, also of those that have ended."""
    return sum(sum(each.cpu_times()[:2]) for each in family()) + sum(psutil.Process().cpu_times()[2:4])


def read(name: str, url: str, cache: Path, decodes: bool, limit: int | None) -> dict[str, Any]:
    """The epochs as fast as they come. The first batch counts from when the imports are over, and nothing is open."""
    open_epochs, finish = READERS[name](), decode() if decodes else iter
    peak, cpu, start = Peak(cache), cpu_seconds(), time.perf_counter()
    peak.start()
    epochs, first, block = list[dict[str, Any]](), 0.0, int(os.environ["BLOCK_IMAGES"])
    for batches in open_epochs(url, cache, limit):
        begun, before, labels, later = time.perf_counter(), asked(), list[int](), (0.0, 0)
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
    pss = sum(each.memory_full_info().pss for each in family())
    return {"first_batch_seconds": first, "epochs": epochs, "peak_disk_bytes": peak.end(), "pss_bytes": pss,
            "cpu_seconds": cpu_seconds() - cpu}  # fmt: skip


def main(words: list[str]) -> None:
    command, name, *rest = words
    if command == "write":
        WRITERS[name](Path(rest[0]), Path(rest[1]), int(rest[2]))
        return
    url, cache, case, limit = rest
    print(json.dumps(read(name, url, Path(cache), case == "decoded", int(limit) or None)), flush=True)
    os._exit(0)  # what workers of some contenders do after their last batch is not timed, nor waited for


if __name__ == "__main__":
    main(sys.argv[1:])
