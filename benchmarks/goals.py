"""The project's goals as data: the target of each, and how to read its figure from the results."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

Rows = Callable[[str, str], list[dict[str, Any]]]
"""(benchmark, device) -> rows of the complete results, without those of --quick."""


class Goal(NamedTuple):
    name: str
    text: str
    least: float
    find: Callable[[Rows], float | None]
    at_most: bool = False
    unit: str = "x"


def _engine(model: str, size: int, *path: str) -> Callable[[Rows], float | None]:
    def find(rows: Rows) -> float | None:
        chosen = [
            r
            for r in rows("engine", "cuda")
            if r["model"] == model and r["resolution"] == size and not r.get("compute_copy")
        ]
        return _follow(chosen, path)

    return find


def _row(benchmark: str, device: str, key: str, value: str, *path: str) -> Callable[[Rows], float | None]:
    return lambda rows: _follow([r for r in rows(benchmark, device) if r[key] == value], path)


def _follow(rows: Iterable[dict[str, Any]], path: Iterable[str]) -> float | None:
    found: Any = next(iter(rows), None)
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return None if found is None else float(found)


def _dense_gain(model: str, size: int) -> Callable[[Rows], float | None]:
    return _engine(model, size, "ratios", "train_ours_over_ours_dense")


S, B, L, H = "deit3_small_patch16", "deit3_base_patch16", "deit3_large_patch16", "deit3_huge_patch14"
_OURS, _MFU = ("train", "ours"), "mfu_executed"
_VIEWS = ("ours", "images_per_second", "median")

GOALS = [
    Goal("G1", "engine, B@224, over R", 3.0, _engine(B, 224, "ratios", "train_ours_over_reference")),
    Goal("G1", "engine, B@224, over T", 1.4, _engine(B, 224, "ratios", "train_ours_over_timm")),
    Goal("G1", "executed MFU, B@224", 0.55, _engine(B, 224, *_OURS, _MFU), unit=""),
    Goal("G1", "executed MFU, S@224", 0.36, _engine(S, 224, *_OURS, _MFU), unit=""),
    Goal("G1", "executed MFU, L@192", 0.62, _engine(L, 192, *_OURS, _MFU), unit=""),
    Goal("G1", "executed MFU, H@160", 0.65, _engine(H, 160, *_OURS, _MFU), unit=""),
    Goal("G2", "stochastic depth by subsets over dense, B@224", 1.18, _dense_gain(B, 224)),
    Goal("G2", "stochastic depth by subsets over dense, L@192", 1.65, _dense_gain(L, 192)),
    Goal("G2", "stochastic depth by subsets over dense, H@160", 2.2, _dense_gain(H, 160)),
    Goal("G2", "useful MFU, L@192", 0.95, _engine(L, 192, *_OURS, "mfu_useful"), unit=""),
    Goal("G2", "useful MFU, H@160", 1.30, _engine(H, 160, *_OURS, "mfu_useful"), unit=""),
    Goal("G2", "engine, L@192, over T", 2.0, _engine(L, 192, "ratios", "train_ours_over_timm")),
    Goal("G2", "engine, H@160, over T", 2.7, _engine(H, 160, "ratios", "train_ours_over_timm")),
    Goal("G3", "end-to-end over synthetic, B@224", 0.97,
         _row("end-to-end", "cuda", "model", B, "ratios", "real_over_synthetic")),
    Goal("G3", "end-to-end over synthetic, S@224", 0.90,
         _row("end-to-end", "cuda", "model", S, "ratios", "real_over_synthetic")),
    Goal("G3", "end-to-end over R with its loader, S@224", 4.0,
         _row("end-to-end", "cuda", "model", S, "ratios", "real_over_reference")),
    Goal("G4", "loader, 3-Augment, views/s", 12_000, _row("loader", "cuda", "case", "three_augment", *_VIEWS), unit=""),
    Goal("G4", "loader, repeated augmentation, views/s", 24_000,
         _row("loader", "cuda", "case", "repeated_augmentation", *_VIEWS), unit=""),
    Goal("G4", "loader, 3-Augment, over PIL", 4.0, _row("loader", "cuda", "case", "three_augment", "ratios", "wall")),
    Goal("G4", "loader, repeated augmentation, over PIL", 8.0,
         _row("loader", "cuda", "case", "repeated_augmentation", "ratios", "wall")),
    *(
        Goal("G5", f"LAMB + clip + EMA over its byte floor, {name}", limit,
             _row("optimizer", "cuda", "model", model, "ours_over_floor", "lamb_clip_ema"), at_most=True)
        for name, model, limit in (("S", S, 1.8), ("B", B, 1.25), ("L", L, 1.25), ("H", H, 1.25))
    ),
    Goal("G5", "over timm Lamb + ModelEmaV3, S", 10.0, _row("optimizer", "cuda", "model", S, "ratios",
                                                            "timm_lamb_ema_over_ours")),
    Goal("G5", "over timm Lamb + ModelEmaV3, L", 3.0, _row("optimizer", "cuda", "model", L, "ratios",
                                                           "timm_lamb_ema_over_ours")),
    Goal("G6", "host-device synchronisations per step, S@224", 0.02, _engine(S, 224, "profile", "syncs_per_step"),
         at_most=True, unit=""),
    Goal("G6", "GPU idle share, S@224", 0.02, _engine(S, 224, "profile", "gpu_idle"), at_most=True, unit=""),
    Goal("G6", "step time p99 / p50, S@224", 1.05, _engine(S, 224, "p99_over_p50"), at_most=True),
    Goal("G7", "engine, B@384, over T", 1.3, _engine(B, 384, "ratios", "train_ours_over_timm")),
    Goal("G7", "executed MFU, B@384", 0.50, _engine(B, 384, *_OURS, _MFU), unit=""),
    Goal("G7", "engine, S@384, over T", 1.4, _engine(S, 384, "ratios", "train_ours_over_timm")),
    Goal("G7", "executed MFU, S@384", 0.33, _engine(S, 384, *_OURS, _MFU), unit=""),
    *(
        Goal("C1", f"loader per CPU-second, {text}, over PIL", least,
             _row("loader", "cpu", "case", case, "ratios", "cpu"))
        for case, text, least in (("three_augment", "3-Augment", 1.0), ("evaluation", "evaluation", 1.4),
                                  ("repeated_augmentation", "repeated augmentation", 1.15))
    ),
    Goal("C2", "256-px shards over originals, per CPU-second", 1.3,
         _row("loader", "cpu", "case", "shards_256", "ratios", "cpu")),
    Goal("C3", "LAMB over timm's default path, ViT-S, CPU", 4.0,
         _row("optimizer", "cpu", "model", S, "ratios", "timm_lamb_over_ours")),
    Goal("C5", "FLOPs saved by stochastic depth over p, ViT-S, p = 0.5", 0.95,
         _row("floors", "cpu", "case", "subset_flops", "ratios", "measured"), unit=""),
    Goal("C5", "training step by subsets over dense, ViT-S, p = 0.5, CPU", 1.6,
         _row("floors", "cpu", "case", "subset_step", "ratios", "measured")),
    Goal("C3", "forward, backward and optimizer over the whole step, CPU", 0.97,
         _row("floors", "cpu", "case", "step_parts", "ratios", "measured"), unit=""),
]  # fmt: skip

NOT_TIMED = {
    "C4": "correctness that needs no GPU: held by the test suite, not by a timing",
}
