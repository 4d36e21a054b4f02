"""Measures the recorded CPU ratios again; a ratio below its floor fails. `.ci/run` runs this.

A floor is a fraction of the ratio that floors.json records for this kind of CPU, with machine and date. The fraction is
generous for timings, because continuous integration shares its machines, and close to 1 for counted quantities. For a
CPU without a record, it is a fraction of the lowest recorded ratio: LAMB's ratios differ by a factor of 1.7 between
kinds of CPUs. Because machines are shared, timings are CPU seconds of one thread, which a loaded machine affects far
less than wall time. A ratio below its floor is measured once more before it counts.

The loader's ratios are compared with records of the same image backend: a build without a C compiler makes views with
DALI's graph, which is slower than the native path. A ratio without a record for this backend is measured and reported
as having no floor.
"""

import contextlib
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from deit_fast.data.loader.backend import choose_backend
from deit_fast.data.sources.base import Source
from deit_fast.models.cost import training_flops
from deit_fast.runtime.files import write_json
from deit_fast.runtime.hardware import cpu_threads
from deit_fast.training.step import TrainStep

from . import loader, optimizer
from .engine import LR
from .images import open_images
from .measure import Row, Session, interleave
from .workload import build_step, find_recipe, in_turn, synthetic_batches

RECORD = Path(__file__).with_name("floors.json")
MODEL = "deit3_small_patch16@160"  # half the FLOPs of 224 px
BATCH = 8
REPEATS = 3  # of a training step, which takes seconds
DROP_PATH = 0.5
VIEWS = 240  # per timed pass
IMAGES = 96


class Floor(NamedTuple):
    case: str
    text: str
    goal: float
    share: float = 0.7
    """The fraction of the recorded ratio below which the check fails."""
    loads: bool = False
    """Whether the ratio depends on what makes the views, which is the record's `image_backend`."""


FLOORS = [
    Floor("lamb", "LAMB's step, times as fast as timm's, ViT-S", 4.0),
    Floor("subset_step", "training step at p = 0.5, batch 8: subset over Bernoulli, ViT-S at 160 px", 1.6),
    Floor("subset_flops", "share of FLOPs that subset stochastic depth saves, over p", 0.95, share=0.99),
    Floor("step_parts", "forward, backward and optimizer alone, over the whole step, ViT-S at 160 px", 0.97),
    Floor("evaluation", "evaluation images per CPU-second over PIL", 1.4, loads=True),
    Floor("three_augment", "3-Augment views per CPU-second over PIL", 1.0, loads=True),
    Floor("repeated_augmentation", "three views per image, per CPU-second over PIL", 1.15, loads=True),
    Floor("rand_augment", "RandAugment views per CPU-second over timm's PIL chain", 2.0, loads=True),
    Floor("shards_256", "256-px shards per CPU-second over the original files", 1.3, loads=True),
]


def run(session: Session, data: str | None, record: bool) -> bool:
    """One row per floor; returns whether all hold. Without `data`, those of the loader are left out.

    record: no ratio fails, and the measured ratios become the record of this kind of CPU in floors.json.
    """
    torch.set_num_threads(1)
    backend = choose_backend("auto", session.device, find_recipe(loader.RECIPE, 2).augment)
    recorded = {} if record else _recorded_ratios(session.machine["cpu"], backend)
    with open_images(data, session.quick, limit=IMAGES) if data else contextlib.nullcontext((None, "none")) as opened:
        source, described = opened
        session.settings = {"data": described, "loader_threads": cpu_threads(), "recorded": recorded,
                            "image_backend": backend}  # fmt: skip
        measures = _measures(session, source)
        for floor in FLOORS:
            if floor.case not in measures:
                session.skip(floor.case, "no photographs (--data)")
                continue
            session.say(floor.text)
            measured = measures[floor.case]()
            least = floor.share * recorded.get(floor.case, 0.0)
            if not record and floor.case not in recorded:
                session.say(f"{floor.case}: NO FLOOR: floors.json has no such ratio of the image backend {backend!r}")
            if measured < least:
                session.say(f"{floor.case}: {measured:.3g}, under its floor of {least:.3g}: once more")
                measured = max(measured, measures[floor.case]())
            session.add({"case": floor.case, "ratios": {"measured": measured}, "goal": floor.goal, "floor": least})
    if record:
        _record(session)
    print(table(session.rows))
    return all(_holds(row) for row in session.rows)


def table(rows: list[Row]) -> str:
    """goal, measured and floor of each row, as aligned text."""
    texts = {floor.case: floor.text for floor in FLOORS}
    lines = [f"{'goal':>6} {'measured':>9} {'floor':>6}"]
    for row in rows:
        measured = row["ratios"]["measured"]
        verdict = "" if _holds(row) else "   UNDER ITS FLOOR"
        verdict += "" if row["floor"] else "   (no floor recorded)"
        verdict += "" if measured >= row["goal"] else "   (goal not met)"
        lines.append(f"{row['goal']:6.2f} {measured:9.2f} {row['floor']:6.2f}  {texts[row['case']]}{verdict}")
    return "\n".join(lines)


def _holds(row: Row) -> bool:
    return bool(row["ratios"]["measured"] >= row["floor"])


def _read_records() -> list[dict[str, Any]]:
    return list(json.loads(RECORD.read_text(encoding="utf-8")))


def _recorded_ratios(cpu: str, backend: str) -> dict[str, float]:
    """The ratios last recorded on this kind of CPU, else the lowest of all kinds; for the loader, of this backend."""
    found = {}
    for floor in FLOORS:
        records = [
            each
            for each in _read_records()
            if floor.case in each["ratios"] and (not floor.loads or each["image_backend"] == backend)
        ]
        own = [each["ratios"][floor.case] for each in records if each["machine"]["cpu"] == cpu]
        if records:
            found[floor.case] = own[-1] if own else min(each["ratios"][floor.case] for each in records)
    return found


def _record(session: Session) -> None:
    machine = {key: session.machine[key] for key in ("cpu", "cores", "load_average", "load_average_after")}
    record = {
        "date": session.date[:10],
        "machine": {**machine, "python": platform.python_version(), "torch": torch.__version__},
        "data": session.settings["data"],
        "image_backend": session.settings["image_backend"],
        "ratios": {row["case"]: round(row["ratios"]["measured"], 3) for row in session.rows},
    }
    kind = machine["cpu"], record["image_backend"]
    others = [each for each in _read_records() if (each["machine"]["cpu"], each["image_backend"]) != kind]
    write_json(RECORD, [*others, record])


def _measures(session: Session, source: Source | None) -> dict[str, Callable[[], float]]:
    """For each floor, a function that measures its ratio."""
    loading: dict[str, Callable[[], float]] = {}
    if source is not None:
        bench = loader.LoaderBench(session, source, find_recipe(loader.RECIPE, IMAGES // 2), VIEWS)
        for case in ("evaluation", "three_augment", "repeated_augmentation", "shards_256"):
            loading[case] = lambda case=case: float(bench.measure(case)["ratios"]["cpu"])  # type: ignore[misc]
        loading["rand_augment"] = lambda: float(bench.race("rand_augment")["over_ours"]["timm_pil"])
    return {
        "lamb": lambda: _lamb(session),
        "subset_step": lambda: _subset_step(session),
        "subset_flops": _subset_flops,
        "step_parts": lambda: _step_parts(session),
        **loading,
    }


def _lamb(session: Session) -> float:
    timed = optimizer.time_steps(session, find_recipe(MODEL, 2, ["model.drop_path=0"]), ["timm_lamb"])
    return timed["timm_lamb"].cpu_seconds["median"] / timed["ours_without_ema"].cpu_seconds["median"]


def _step(session: Session, *words: str) -> tuple[TrainStep, list[Any]]:
    recipe = find_recipe(MODEL, BATCH, [*words, "run.precision=fp32", "run.compile=off"])
    return build_step(recipe, session.device), synthetic_batches(recipe, session.device)


def _medians(session: Session, cases: dict[str, Callable[[], Any]]) -> list[float]:
    timed, errors = interleave(cases, session.device, session.say, repeats=REPEATS, warmup=1, seconds=0.0)
    if errors:
        raise RuntimeError(str(errors))
    return [timed[name].cpu_seconds["median"] for name in cases]


def _subset_step(session: Session) -> float:
    cases = {}
    for mode in ("subset", "bernoulli"):
        step, batches = _step(session, f"model.drop_path={DROP_PATH}", f"model.drop_path_mode={mode}")
        cases[mode] = in_turn(lambda each, step=step: step([each], LR), batches)
    subset, bernoulli = _medians(session, cases)
    return bernoulli / subset


def _subset_flops() -> float:
    subset, bernoulli = (
        training_flops(
            find_recipe(MODEL, BATCH, [f"model.drop_path={DROP_PATH}", f"model.drop_path_mode={mode}"]).model, BATCH
        )
        for mode in ("subset", "bernoulli")
    )
    return (1 - subset / bernoulli) / DROP_PATH


def _step_parts(session: Session) -> float:
    """The step against its parts called directly; the difference is the cost of the loop around them."""
    step, batches = _step(session, "model.drop_path=0")
    optimizer_step = step.state.optimizer

    def parts(batch: Any) -> None:
        step.objective(*batch).backward()
        optimizer_step.step()
        optimizer_step.zero_grad(set_to_none=True)

    whole = in_turn(lambda each: step([each], LR), batches)
    together, bare = _medians(session, {"step": whole, "parts": in_turn(parts, batches)})
    return bare / together
