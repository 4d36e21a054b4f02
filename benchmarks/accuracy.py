"""Whole trainings of real images from the command line, with ours and timm's train.py: accuracy, time, memory.

Each training is a process of its own, one after the other, on the same image files. The JSON is written after each
training, and the same command run again continues with the missing ones. The whole command is timed: its start, the
training, and the evaluation after the last epoch. Other work on the machine increases wall time, slightly increases CPU
time, and does not affect accuracy.
"""

import csv
import itertools
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from deit_fast.runtime.errors import RunError
from deit_fast.runtime.files import atomic_path

from .accuracy_cases import PRETRAINING, PRETRAINING_CUT, Case, Ours, Timm, cases
from .accuracy_images import write_images
from .measure import Row, Session
from .timed_command import Cost, time_command

WEIGHTS = "accuracy-pretrained.safetensors"
"""The common start of the finetuning cases, beside the JSON: one training, so that seeds vary the finetuning alone."""
_MEASURED = ("top1", "seconds", "cpu_seconds", "peak_pss_mb", "images_per_second", "images_per_cpu_second")


def run(
    session: Session, data: str, timm: Path | None, names: Sequence[str], seeds: Sequence[int], per_class: int | None
) -> None:
    """A row for each case. data: URI of CIFAR-10 or a similar data set. timm: a checkout; None leaves timm's runs out.

    Raises RunError for an unknown case, a checkout without train.py and a training that failed, DataError for
    unreadable data.
    """
    known = cases(per_class)
    if unknown := [name for name in names if name not in known]:
        raise RunError(f"--cases {unknown[0]}: expected some of {', '.join(known)}")
    if timm is not None and not (timm / "train.py").is_file():
        raise RunError(f"--timm {timm}: expected a checkout of huggingface/pytorch-image-models with its train.py, "
                       "which no package of timm has")  # fmt: skip
    session.settings = {"data": Path(data).name, "timm": None if timm is None else _version_of(timm)}
    if session.path.exists():
        session.rows = json.loads(session.path.read_text(encoding="utf-8"))["rows"]
    with tempfile.TemporaryDirectory(prefix="deit-fast-accuracy-") as folder:
        trainings = _Trainings(session, data, timm, Path(folder))
        for seed, name in itertools.product(seeds, names or known):
            trainings.run(known[name], seed)


@dataclass
class _Trainings:
    session: Session
    data: str
    timm: Path | None
    folder: Path
    """The folder of images and runs, which is removed when the command ends."""

    def run(self, case: Case, seed: int) -> None:
        """Trains each contender of the case, except for those that the JSON already has."""
        row = self._row_of(case)
        done = {(each["contender"], each["seed"]) for each in row["runs"]}
        for name, contender in case.contenders.items():
            what = f"{case.name}, {name}, seed {seed}"
            if (name, seed) in done or self.session.out_of_time(what):
                continue
            if isinstance(contender, Timm) and self.timm is None:
                self.session.skip(what, "no --timm")
                continue
            images = self.folder / case.name
            row["images"] = write_images(self.data, case.images, images)
            weights = self._pretrained() if contender.starts else None
            self.session.say(f"{what}: {row['images']} images, {case.epochs} epochs")
            load = os.getloadavg()[0]
            top1, cost = self._train(contender, images, self.folder / f"{case.name}-{name}-{seed}", seed, weights)
            row["runs"].append({"contender": name, "seed": seed, "top1": top1, **asdict(cost),
                                **_rates(case.epochs * row["images"], cost),
                                "load_average": load, "load_average_after": os.getloadavg()[0]})  # fmt: skip
            row["contenders"] = {each: _spread(row["runs"], each) for each in case.contenders}
            row["ratios"] = _ratios(row["contenders"])
            self.session.save()

    def _train(
        self, contender: Ours | Timm, images: Path, out: Path, seed: int, weights: Path | None
    ) -> tuple[float, Cost]:
        """Top-1 after the last epoch, in percent, and the cost of the command."""
        log = self.folder / "log.txt"
        if isinstance(contender, Ours):
            cost = time_command(contender.command(images, out, seed, weights), log)
            return json.loads((out / "result.json").read_text(encoding="utf-8"))["top1"], cost
        assert self.timm is not None
        cost = time_command(contender.command(self.timm / "train.py", images, out, seed, weights), log)
        with (out / "summary.csv").open(encoding="utf-8", newline="") as lines:
            return float(list(csv.DictReader(lines))[-1]["eval_top1"]), cost

    def _pretrained(self) -> Path:
        """Weights, with timm's names, of a model trained on the classes that the cuts leave out; they are kept."""
        kept = self.session.path.parent / WEIGHTS
        if not kept.exists():
            images, out = self.folder / "pretraining", self.folder / "pretrained"
            write_images(self.data, PRETRAINING_CUT, images)
            self.session.say("pretraining on the classes that the cuts leave out")
            top1, _ = self._train(PRETRAINING, images, out, 0, None)
            self.session.say(f"pretrained: top-1 {top1:.2f} of those classes")
            with atomic_path(kept) as temporary:
                shutil.copyfile(out / "checkpoints" / "last.safetensors", temporary)
        return kept

    def _row_of(self, case: Case) -> Row:
        cut = None if case.images is None else asdict(case.images)
        for row in self.session.rows:
            if (row["case"], row["cut"]) == (case.name, cut):
                return row
        row = {"case": case.name, "cut": cut, "epochs": case.epochs, "runs": []}
        self.session.rows.append(row)
        return row


def _rates(views: int, cost: Cost) -> Row:
    return {"images_per_second": views / cost.seconds, "images_per_cpu_second": views / cost.cpu_seconds}


def _spread(runs: list[Row], contender: str) -> Row:
    """Mean, standard deviation (0 for a single run), minimum and maximum over the seeds."""
    mine = [each for each in runs if each["contender"] == contender]
    spread: Row = {"seeds": [each["seed"] for each in mine]}
    for key in _MEASURED if mine else ():
        values = [each[key] for each in mine]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        spread[key] = {"mean": statistics.mean(values), "deviation": deviation, "min": min(values), "max": max(values)}
    return spread


def _ratios(contenders: dict[str, Row]) -> Row:
    """The difference of the contenders' top-1, in points, and the second's costs over the first's."""
    first, second = list(contenders.values())[:2]
    if not (first["seeds"] and second["seeds"]):
        return {}
    costs = ("seconds", "cpu_seconds", "peak_pss_mb")
    return {"top1_difference": first["top1"]["mean"] - second["top1"]["mean"],
            **{key: second[key]["mean"] / first[key]["mean"] for key in costs}}  # fmt: skip


def _version_of(timm: Path) -> str:
    return (timm / "timm" / "version.py").read_text(encoding="utf-8").partition("=")[2].strip(" '\"\n")
