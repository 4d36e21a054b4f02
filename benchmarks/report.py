"""Tables and plots for the README, from the JSONs in a folder. A figure without a JSON is "not measured yet"."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from deit_fast.runtime.files import atomic_path
from deit_fast.runtime.table import markdown_table

from .goals import GOALS, NOT_TIMED
from .measure import SCHEMA
from .workload import ZOO

MISSING = "not measured yet"
DEVICES = ("cuda", "cpu")
_SAME = ("case", "model", "resolution", "mode", "batch_chosen")
_SAME_STEP = ("batch", "compute_copy")


class Results:
    """The JSONs of a folder; of rows that measure the same, the newest complete (not --quick) one counts."""

    def __init__(self, folder: Path) -> None:
        contents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
        known = (c for c in contents if isinstance(c, dict) and c.get("schema") == SCHEMA and not c["quick"])
        self.contents = sorted(known, key=lambda c: c["date"])

    def rows(self, benchmark: str, device: str) -> list[dict[str, Any]]:
        newest: dict[Any, dict[str, Any]] = {}
        for content in self.contents:
            if content["benchmark"] == benchmark and content["device"] == device:
                for row in content["rows"]:
                    key = tuple(row.get(k) for k in (*_SAME, *(_SAME_STEP if benchmark == "engine" else ())))
                    newest[key] = _joined(newest.get(key, {}), row)
        return list(newest.values())

    def machines(self) -> list[str]:
        """Where and when the figures were measured, one line per machine."""
        dates: dict[str, list[str]] = defaultdict(list)
        for content in self.contents:
            m, v = content["machine"], content["versions"]
            gpu = f"{m['gpu']}, driver {m['gpu_state'].get('driver_version', '?')}, " if "gpu" in m else ""
            words = ", ".join(f"{name} {v[name]}" for name in ("torch", "timm", "torchvision") if name in v)
            dates[f"{gpu}{m['cpu']}, {m['cores']} cores; {words}"].append(content["date"][:10])
        return [f"{where}; {', '.join(sorted(set(days)))}" for where, days in dates.items()]


def _joined(earlier: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """The row, with comparisons that only an earlier row has: a part of a day uses some of the engines."""
    both = ((earlier.get(key), value) for key, value in row.items())
    kept = [old if isinstance(old, dict) and isinstance(new, dict) else {} for old, new in both]
    return {key: old | new if old else new for (key, new), old in zip(row.items(), kept, strict=True)}


def write_report(results: Path, out: Path) -> Path:
    """Writes report.md and its plots into `out`; returns the page's path."""
    found = Results(results)
    out.mkdir(parents=True, exist_ok=True)
    plots = [path.name for path in _plots(found, out)]
    lines = ["# Benchmarks", ""]
    lines += [f"* {line}" for line in found.machines()] or [f"Nothing here yet: every figure is {MISSING}."]
    for title, body in (
        ("Goals", goals_table(found)),
        ("Throughput", throughput_table(found)),
        ("Training step", engine_table(found)),
        ("Loader", loader_table(found)),
        ("Optimizer", optimizer_table(found)),
        ("End to end", end_to_end_table(found)),
    ):
        lines += ["", f"## {title}", "", *body]
    lines += ["", *(f"![{name}]({name})" for name in plots)]
    path = out / "report.md"
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return path


def goals_table(found: Results) -> list[str]:
    rows = []
    for goal in GOALS:
        value = goal.find(found.rows)
        met = None if value is None else value <= goal.least if goal.at_most else value >= goal.least
        sign = "<=" if goal.at_most else ">="
        measured = MISSING if value is None else f"{_number(value)}{goal.unit}"
        verdict = MISSING if met is None else "met" if met else "**not met**"
        rows.append([goal.name, goal.text, f"{sign} {_number(goal.least)}{goal.unit}", measured, verdict])
    rows += [[name, text, "", "see tests/", ""] for name, text in NOT_TIMED.items()]
    return markdown_table(["goal", "what", "wanted", "measured", "met"], rows)


def throughput_table(found: Results) -> list[str]:
    rows: list[list[str]] = []
    for device in DEVICES:
        measured = found.rows("throughput", device)
        for mode in ("inference", "train"):
            for name in dict.fromkeys([*ZOO, *(r["model"] for r in measured)]):
                mine = [r for r in measured if r["model"] == name and r["mode"] == mode]
                if not mine:
                    rows.append([name, "", "", "", device, mode, "", MISSING, "", ""])
                rows += [
                    [name, f"{r['params_m']:.1f}", f"{r['gmacs']:.2f}", str(r["resolution"]), device, mode,
                     f"{r['batch']} ({r['batch_chosen']})", _spread(r["images_per_second"]),
                     f"{r['peak_memory_mb']:.0f}", f"{r['mfu']:.1%}"]
                    for r in mine
                ]  # fmt: skip
    head = ["name", "params, M", "GFLOPs (MACs)", "px", "device", "mode", "batch", "im/s", "peak memory, MB", "MFU"]
    return markdown_table(head, rows)


def engine_table(found: Results) -> list[str]:
    rows = []
    for device in DEVICES:
        for r in found.rows("engine", device):
            ours = r["train"]["ours"]
            rows.append(
                [r["model"], str(r["resolution"]), device, str(r["batch"]), _spread(ours["images_per_second"])]
                + [_ratio(r["ratios"].get(f"{kind}_ours_over_{peer}")) for kind in ("train", "eval")
                   for peer in ("reference", "timm")]
                + [f"{ours['mfu_executed']:.1%}", f"{ours['mfu_useful']:.1%}"]
            )  # fmt: skip
    head = ["model", "px", "device", "batch", "ours, im/s", "train / R", "train / T", "eval / R", "eval / T"]
    return markdown_table([*head, "MFU executed", "MFU useful"], rows) if rows else [MISSING]


def loader_table(found: Results) -> list[str]:
    rows = []
    for device in DEVICES:
        for r in found.rows("loader", device):
            base = r.get("peer") or r.get("original")
            if "ours" in r and base:
                rows.append([r["case"], device, *(_spread(side[key]) for key in
                             ("images_per_second", "images_per_cpu_second") for side in (r["ours"], base)),
                             _ratio(r["ratios"]["wall"]), _ratio(r["ratios"]["cpu"])])  # fmt: skip
    head = ["case", "device", "ours, im/s", "peer, im/s", "ours, im/CPU-s", "peer, im/CPU-s", "ratio", "ratio per CPU"]
    return markdown_table(head, rows) if rows else [MISSING]


def optimizer_table(found: Results) -> list[str]:
    rows = []
    for device in DEVICES:
        for r in found.rows("optimizer", device):
            for name, value in r["milliseconds"].items():
                if name != "copy":
                    rows.append([r["model"], device, name, _spread(value), _ratio(
                        value["median"] / r["floor_milliseconds"]["lamb_clip_ema"])])  # fmt: skip
    return markdown_table(["shapes", "device", "case", "ms", "over the 52 B floor"], rows) if rows else [MISSING]


def end_to_end_table(found: Results) -> list[str]:
    rows = []
    for device in DEVICES:
        for r in found.rows("end-to-end", device):
            speeds = r["images_per_second"]
            ratios, wait = r["ratios"], r["data_wait"]["median"]
            row = [r["model"], str(r["resolution"]), device, _spread(speeds["real"]), _spread(speeds["synthetic"])]
            over_reference = _ratio(ratios.get("real_over_reference"))
            rows.append([*row, _ratio(ratios["real_over_synthetic"]), f"{wait:.1%}", over_reference])
    head = ["model", "px", "device", "real, im/s", "synthetic, im/s", "ratio", "data wait", "over R with its loader"]
    return markdown_table(head, rows) if rows else [MISSING]


def _plots(found: Results, out: Path) -> list[Path]:
    """Bar charts of the ratios to the peers, one for each device with ratios."""
    from matplotlib.figure import Figure

    paths = []
    for device in DEVICES:
        bars: dict[str, float] = {}
        for row in found.rows("engine", device):
            for key, value in row["ratios"].items():
                bars[f"{row['model']}@{row['resolution']} {key}"] = value
        for row in found.rows("loader", device):
            if "ratios" in row:
                bars[f"loader {row['case']}, per CPU-second"] = row["ratios"]["cpu"]
        for row in found.rows("optimizer", device):
            for key, value in row["ratios"].items():
                bars[f"{row['model']} {key}"] = value
        if not bars:
            continue
        figure = Figure(figsize=(9, 1 + 0.28 * len(bars)), layout="constrained")
        axes = figure.subplots()
        axes.barh(list(bars)[::-1], list(bars.values())[::-1])
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set(xlabel=f"times as fast, {device}")
        path = out / f"ratios-{device}.png"
        figure.savefig(path, dpi=110)
        paths.append(path)
    return paths


def _spread(values: dict[str, float]) -> str:
    return f"{_number(values['median'])} ({_number(values['min'])} to {_number(values['max'])})"


def _ratio(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}x"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
