"""Checkpoints that would run code or take memory and time: each is refused within a second, and no code runs."""

import time
from pathlib import Path

from deit_fast.convert.detect import load_weights
from deit_fast.convert.formats import constructors
from deit_fast.runtime.errors import RunError
from tests.convert.test_convert_safety import BOMBS
from tests.malicious import NO_PROOF, ROUTES, hostile_files
from tests.soak.rounds import Found, rounds

SECONDS = 1.0


def hostile(folder: Path, count: int, seed: int, plant: str) -> Found:
    """Tries all files at least once, and again until `count`. Planted bug trusting: eval is a constructor."""
    proof, path = folder / "ran", folder / "x.pth"
    files = {name: content for name, (content, _) in hostile_files(str(proof)).items()}
    files |= {name: build() for name, (build, _) in BOMBS.items()}
    if plant == "trusting":
        constructors._ALLOWED["builtins.eval"] = eval
    wrong, slowest, names = list[str](), 0.0, list(files)
    for number in rounds(max(count, len(files)), "hostile checkpoints", 60):
        name = names[number % len(names)]
        path.write_bytes(files[name])
        started = time.perf_counter()
        try:
            load_weights(path)
            wrong.append(f"{name}: was loaded")
        except RunError as error:
            if "\n" in str(error):
                wrong.append(f"{name}: more than a line: {error}")
        except Exception as error:
            wrong.append(f"{name}: {type(error).__name__}: {error}")
        slowest = max(slowest, time.perf_counter() - started)
        if proof.exists():
            wrong.append(f"{name}: ran")
            proof.unlink()
    if slowest > SECONDS:
        wrong.append(f"one took {slowest:.1f} s")
    routes = len({name for route, (_, name) in ROUTES.items() if route not in NO_PROOF})
    return Found(f"{len(files)} files, {routes} functions that run, refused in at most {slowest:.2f} s", wrong)
