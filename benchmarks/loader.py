"""Our loaders against torchvision and PIL in a DataLoader, on the same images in the same order."""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deit_fast.data.loader.dali import Pipeline, decode_images, import_dali
from deit_fast.data.sources.base import Source
from deit_fast.data.sources.open import open_source
from deit_fast.data.tools.write_shards import write_shards
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.hardware import cpu_threads

from .images import open_images
from .loader_memory import race_memory
from .loader_ours import evaluation, normaliser, race_recipe, race_repeats, training
from .loader_peers import absent, build_peer, peers_of
from .measure import Row, Session, interleave, rate
from .pil import decode_chain, evaluation_chain, pil_loader, three_augment_chain
from .workload import find_recipe

RECIPE = "deit3_small_patch16@224"
MOST_WORKERS = 16
CASES = ("decode", "three_augment", "repeated_augmentation", "evaluation", "shards_256")
RACES = ("race_three_augment", "race_repeated_augmentation", "race_evaluation", "race_rand_augment")
"""Cases that run only when they are named: ours against all loaders of loader_peers.py."""


def run(session: Session, data: str | None, cases: list[str] | None) -> None:
    """One row per case."""
    on_gpu = session.device.type == "cuda"
    batch = 48 if session.quick else 240 if on_gpu else 96
    views = (96 if session.quick else 960) * (20 if on_gpu and not session.quick else 1)
    with open_images(data, session.quick, views) as (source, described):
        bench = LoaderBench(session, source, find_recipe(RECIPE, batch), views)
        session.settings = {
            "data": described,
            "views_per_call": views,
            "batch": batch,
            "threads": cpu_threads(),
            "workers": bench.workers,
            "start_up": "in the warm-up: pipelines and worker processes stay from one timed pass to the next",
        }
        for case in cases or CASES:
            if not session.out_of_time(case):
                session.add(bench.measure(case))


class LoaderBench:
    """The cases on one source. views: images or views in each timed pass, rounded to whole batches."""

    def __init__(self, session: Session, source: Source, recipe: Recipe, views: int) -> None:
        self.session, self.source, self.recipe = session, source, recipe
        self.workers = min(MOST_WORKERS, cpu_threads())
        torch.set_num_threads(1)  # as in each of the peer's workers: threads that wait for each other cost CPU seconds
        self.device, self.batch = session.device, min(recipe.run.global_batch, len(source) // 2 * 2)
        self.steps = max(1, views // self.batch)
        self.normalise = normaliser(recipe, self.device)

    def measure(self, case: str) -> Row:
        """The row of one of CASES or RACES: rates of all sides and their ratios."""
        if case in RACES:
            raced = self.race(case.removeprefix("race_"))
            return {**raced, "pss_mb": self._memory(case.removeprefix("race_"), list(raced["cpu_ms_per_view"]))}
        build = {
            "decode": self._decode,
            "three_augment": self._three_augment,
            "repeated_augmentation": self._repeated,
            "evaluation": self._evaluation,
            "shards_256": self._shards,
        }
        calls, views = build[case]()
        timed, errors = interleave(
            calls, self.device, self.session.say, repeats=self.session.repeats, warmup=1, seconds=0.0,
            known=lambda name, timing: self.session.note(
                f"{case} {name}", views / timing.seconds["median"], "images/s"),
        )  # fmt: skip
        row: Row = {"case": case, "views": views, "errors": errors}
        for name, timing in timed.items():
            row[name] = {
                "images_per_second": rate(views, timing.seconds),
                "images_per_cpu_second": rate(views, timing.cpu_seconds),
            }
        ours, base = row.get("ours"), next((row[name] for name in ("peer", "original") if name in row), None)
        if ours and base:
            row["ratios"] = {
                "wall": ours["images_per_second"]["median"] / base["images_per_second"]["median"],
                "cpu": ours["images_per_cpu_second"]["median"] / base["images_per_cpu_second"]["median"],
            }
        return row

    def race(self, case: str) -> Row:
        """A case of RACES, without `race_`: CPU time of ours and of every installed peer, and their ratios."""
        recipe = self.recipe
        size, data = recipe.model.image_size, recipe.data
        if case == "evaluation":
            calls, views = self._evaluation()
            ours, shown = calls["ours"], np.arange(views) % (len(self.source) // self.batch * self.batch)
        else:
            ours, shown = self._train(self.source, race_repeats(case), race_recipe(recipe, case))
        names = peers_of(case)
        missing = {name: module for name in names if (module := absent(name))}
        for name, module in missing.items():
            self.session.say(f"{name} is left out: {module} is not installed (pip install 'deit_fast[peers]')")
        calls = {"ours": ours} | {
            name: build_peer(
                name, case, self.source, (shown % len(self.source)).tolist(), size, data, self.batch, self.workers
            )
            for name in names
            if name not in missing
        }
        timed, errors = interleave(
            calls, self.device, self.session.say, repeats=self.session.repeats, warmup=1, seconds=0.0
        )
        milliseconds = {name: 1000 * timing.cpu_seconds["median"] / len(shown) for name, timing in timed.items()}
        return {
            "case": f"race_{case}",
            "views": len(shown),
            "errors": errors,
            "absent": missing,
            "cpu_ms_per_view": milliseconds,
            "over_ours": {name: each / milliseconds["ours"] for name, each in milliseconds.items() if name != "ours"},
        }

    def _memory(self, case: str, names: list[str]) -> dict[str, float]:
        """MB of each side, measured in a process of its own, on a CPU."""
        found: dict[str, float] = {}
        for name in names if self.device.type == "cpu" else []:
            self.session.say(f"memory: {name}")
            found[name] = race_memory(name, case, self.source, self.recipe, self.batch, self.steps, self.workers)
        return found

    def _train(
        self, source: Source, repeats: int, recipe: Recipe | None = None
    ) -> tuple[Callable[[], None], np.ndarray]:
        """A pass over our training loader, and the images it shows, in order."""
        loader, shown = training(source, recipe or self.recipe, repeats, self.batch, self.steps, self.device)
        return lambda: self._consume(batch.images for batch in loader), shown

    def _consume(self, batches: Iterable[torch.Tensor]) -> None:
        for images in batches:
            self.normalise(images)

    def _peer(self, source: Source, indices: Any, transform: Callable[..., torch.Tensor]) -> Callable[[], None]:
        on_gpu = self.device.type == "cuda"
        loader = pil_loader(source, indices, transform, self.batch, self.workers, on_gpu)

        def call() -> None:
            for images, _ in loader:
                images.to(self.device, non_blocking=True)

        return call

    def _three_augment(self) -> tuple[dict[str, Callable[[], None]], int]:
        return self._augmented(repeats=1)

    def _repeated(self) -> tuple[dict[str, Callable[[], None]], int]:
        return self._augmented(repeats=3)

    def _augmented(self, repeats: int) -> tuple[dict[str, Callable[[], None]], int]:
        ours, shown = self._train(self.source, repeats)
        chain = three_augment_chain(self.recipe.model.image_size, self.recipe.data)
        return {"ours": ours, "peer": self._peer(self.source, shown, chain)}, len(shown)

    def _evaluation(self) -> tuple[dict[str, Callable[[], None]], int]:
        size, data = self.recipe.model.image_size, self.recipe.data
        loader, source = evaluation(self.source, self.recipe, self.batch, self.device)
        passes = max(1, self.steps * self.batch // len(source))
        indices = list(range(len(source))) * passes

        def ours() -> None:
            for _ in range(passes):
                self._consume(batch.images for batch in loader)

        return {"ours": ours, "peer": self._peer(source, indices, evaluation_chain(size, data))}, len(indices)

    def _decode(self) -> tuple[dict[str, Callable[[], None]], int]:
        """Decoding of whole images in our pipeline, which hands on one pixel of each, against PIL."""
        on_gpu = self.device.type == "cuda"
        indices = np.arange(self.steps * self.batch) % len(self.source)
        waiting: list[list[int]] = []

        def feed() -> list[Any]:
            if not waiting:
                raise StopIteration
            return [[self.source.read(index) for index in waiting.pop()]]

        def graph(encoded: Any, _: dict[str, Any]) -> Any:
            pixel = {"start": [0, 0], "shape": [1, 1], "axis_names": "HW"}
            return import_dali().fn.slice(decode_images(encoded, on_gpu), **pixel)

        pipeline = Pipeline(graph, [], feed, self.batch, self.device, cpu_threads())

        def ours() -> None:
            waiting.extend(indices.reshape(self.steps, self.batch).tolist())
            try:
                while True:
                    pipeline.run()
            except StopIteration:
                pipeline.reset()

        return {"ours": ours, "peer": self._peer(self.source, indices, decode_chain)}, len(indices)

    def _shards(self) -> tuple[dict[str, Callable[[], None]], int]:
        """Our loader on 256-px tar shards that are made here, against itself on the original files."""
        self._folder = tempfile.TemporaryDirectory(prefix="deit-fast-shards-")
        folder, count = Path(self._folder.name), len(self.source)
        self.session.say(f"writing {count} images as a 256-px shard")
        write_shards(self.source, folder, "train", 256, per_shard=count, workers=1)
        shards, shown = self._train(open_source(str(folder), "train"), repeats=1)
        originals, _ = self._train(self.source, repeats=1)
        return {"ours": shards, "original": originals}, len(shown)
