"""The last lines of `deit-fast train`: scores with intervals, paths of the results, and next commands."""

import shlex
from typing import Any

from deit_fast.infer.report import wilson_interval
from deit_fast.runtime.durations import duration
from deit_fast.runtime.fold import fold


def describe_end(result: dict[str, Any], out: str, data: str) -> list[str]:
    """Lines for a person about a run's result.json. out, data: as given to the command."""
    images, lines = result.get("val_images"), []
    for prefix, name in (("", "top-1"), ("ema_", "top-1 of the moving average")):
        top1 = result.get(f"{prefix}top1")
        if isinstance(top1, int | float) and images:
            low, high = wilson_interval(round(top1 * images / 100), images)
            lines.append(f"{name:<28} {top1:.2f} % ({low:.1f} to {high:.1f}, 95 %), of {images:,} images")
    if isinstance(best := result.get("best_top1"), int | float):
        lines.append(f"{'best top-1 on the way':<28} {best:.2f} %, in checkpoints/best.pt")
    lines.append(f"{'time':<28} {duration(60 * result['minutes'])}, {result['images_per_second']:,.0f} images/s, "
                 f"{result['peak_memory_gib']:.1f} GiB at most")  # fmt: skip
    lines.append(fold([f"{'checkpoint':<28}", result["checkpoint"]], indent=2))
    run, images_of = shlex.quote(out), shlex.quote(data)
    return [
        "",
        *lines,
        fold([f"{'report':<28}", f"{out}/report.html"], indent=2),
        "",
        "next",
        fold([f"  deit-fast report {run}", "# with confusions, mistakes, attention"], 4, "  "),
        fold(
            [f"  deit-fast evaluate {run}", f"--data {images_of}", f"--report {shlex.quote(out + '/evaluation')}"],
            indent=4,
            end=" \\",
        ),
        f"  deit-fast predict {run} IMAGE ...",
        fold([f"  deit-fast convert {run} FOLDER", "# for timm; FILE.onnx for others"], 4, "  "),
    ]
