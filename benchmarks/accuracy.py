"""Whole trainings of real images from the command line, ours and timm's train.py: accuracy, time, memory, by seed.

Each is a process of its own, one after the other, on the same image files. The JSON is written after each, and a
command that is given again goes on with what is missing. What is timed is the whole command: start, training, the
evaluation after the last epoch. Load lengthens the wall time of a run, CPU seconds a little, and accuracy not at all.
"""

import csv
import itertools
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.open import open_source
from deit_fast.runtime.errors import RunError

from .accuracy_cases import Case, Cut, Ours, Timm, cases
from .measure import Row, Session
from .timed_command import time_command

_MEASURED = ("top1", "seconds", "cpu_seconds", "peak_pss_mb", "images_per_second", "images_per_cpu_second")


def run(
    session: Session, data: str, timm: Path | None, names: Sequence[str], seeds: Sequence[int], per_class: int | None
) -> None:
    """A row for each case. timm: a checkout of its repository; without one its trainings are left out.

    Raises RunError for an unknown case, a checkout without train.py and a training that failed, DataError for data that
    cannot be read.
    """
    known = cases(per_class)
    if unknown := [name for name in names if name not in known]:
        raise RunError(f"--cases {unknown[0]}: expected some of {', '.join(known)}")
    if timm is not None and not (timm / "train.py").is_file():
        raise RunError(f"--timm {timm}: expected a checkout of timm's repository, which has train.py; PyPI's has none")
    chosen = [known[name] for name in names or known]
    session.settings = {"data": Path(data).name, "timm": _timm_version(timm)}
    session.rows = _earlier(session.path)
    with tempfile.TemporaryDirectory(prefix="deit-fast-accuracy-") as folder:
        for seed, case in itertools.product(seeds, chosen):
            _run_case(session, case, seed, data, timm, Path(folder))


def _run_case(session: Session, case: Case, seed: int, data: str, timm: Path | None, folder: Path) -> None:
    row = _row_of(session.rows, case)
    done = {(each["contender"], each["seed"]) for each in row["runs"]}
    for name, contender in case.contenders.items():
        what = f"{case.name}, {name}, seed {seed}"
        if (name, seed) in done or session.out_of_time(what):
            continue
        if isinstance(contender, Timm) and timm is None:
            session.skip(what, "no --timm")
            continue
        images = folder / "-".join(f"{value}" for value in asdict(case.cut).values())
        counts = write_cut(data, case.cut, images)
        session.say(f"{what}: {counts['train']} images, {case.epochs} epochs")
        row |= {"images": counts["train"], "validation_images": counts["val"]}
        row["runs"].append(_train(contender, name, case, seed, images, counts["train"], timm, folder))
        row["contenders"] = {each: _spread(row["runs"], each) for each in case.contenders}
        row["ratios"] = _ratios(row["contenders"])
        session.save()


def _train(
    contender: Ours | Timm, name: str, case: Case, seed: int, images: Path, count: int, timm: Path | None, folder: Path
) -> Row:
    out = folder / f"{case.name}-{name}-{seed}"
    load = os.getloadavg()[0]
    if isinstance(contender, Ours):
        cost = time_command(contender.command(images, out, seed, None), folder / "log.txt")
        top1 = json.loads((out / "result.json").read_text(encoding="utf-8"))["top1"]
    else:
        assert timm is not None
        cost = time_command(contender.command(timm / "train.py", images, out, seed, None), folder / "log.txt")
        with (out / "summary.csv").open(encoding="utf-8", newline="") as lines:
            top1 = float(list(csv.DictReader(lines))[-1]["eval_top1"])
    views = case.epochs * count
    return {"contender": name, "seed": seed, "top1": top1, **asdict(cost), "images_per_second": views / cost.seconds,
            "images_per_cpu_second": views / cost.cpu_seconds, "load_average": load,
            "load_average_after": os.getloadavg()[0]}  # fmt: skip


def write_cut(data: str, cut: Cut, folder: Path) -> dict[str, int]:
    """An image folder of the cut's images, with a train and a val split, unless it is there. Returns their numbers.

    Of the training images the first `per_class` of each class are taken, of the others all.
    """
    counts = {}
    for split in ("train", "val"):
        source = open_source(data, split)  # type: ignore[arg-type]
        chosen = _chosen(source, cut, cut.per_class if split == "train" else None)
        counts[split] = len(chosen)
        if (folder / split).exists():
            continue
        for index in chosen:
            path = folder / split / source.classes[source.labels[index]] / f"{index:06}{_suffix(source, index)}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source.read(index).tobytes())
    return counts


def _chosen(source: Source, cut: Cut, per_class: int | None) -> list[int]:
    taken = [np.flatnonzero(source.labels == label)[:per_class]
             for label in range(cut.first, len(source.classes), cut.step)]  # fmt: skip
    return sorted(np.concatenate(taken).tolist())


def _suffix(source: Source, index: int) -> str:
    return Path(source.name(index)).suffix


def _earlier(path: Path) -> list[Row]:
    if not path.exists():
        return []
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


def _row_of(rows: list[Row], case: Case) -> Row:
    for row in rows:
        if (row["case"], row["per_class"]) == (case.name, case.cut.per_class):
            return row
    rows.append({"case": case.name, "per_class": case.cut.per_class, "epochs": case.epochs, "runs": []})
    return rows[-1]


def _spread(runs: list[Row], contender: str) -> Row:
    """Mean, standard deviation (of one run none), least and most over the seeds."""
    mine = [each for each in runs if each["contender"] == contender]
    spread: Row = {"seeds": [each["seed"] for each in mine]}
    for key in _MEASURED if mine else ():
        values = [each[key] for each in mine]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        spread[key] = {"mean": statistics.mean(values), "deviation": deviation, "min": min(values), "max": max(values)}
    return spread


def _ratios(contenders: dict[str, Row]) -> Row:
    """The second contender's costs over the first's, and what the first's top-1 has more, in points."""
    first, second = list(contenders.values())[:2]
    if not (first["seeds"] and second["seeds"]):
        return {}
    return {"top1_difference": first["top1"]["mean"] - second["top1"]["mean"]} | {
        key: second[key]["mean"] / first[key]["mean"] for key in ("seconds", "cpu_seconds", "peak_pss_mb")
    }


def _timm_version(timm: Path | None) -> str | None:
    if timm is None:
        return None
    return (timm / "timm" / "version.py").read_text(encoding="utf-8").partition("=")[2].strip(" '\"\n")
