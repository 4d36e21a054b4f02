"""Fixtures shared by all tests: small data, the shared folder of real images, and markers that skip with a reason."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deit_fast.zoo import ARCHITECTURES
from tests.toys import TOYS

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"

# On two cores, two test processes must not start four threads each.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    reasons = {}
    if not torch.cuda.is_available():
        reasons["gpu"] = "needs an NVIDIA GPU, and this machine has none"
    for marker in ("slurm", "soak"):
        if marker not in config.option.markexpr:
            reasons[marker] = f"runs for minutes; pytest -m {marker} runs it"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):  # not in keywords: a case may be called slurm
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images kept beside the repository. Tests that use them skip with a reason when the folder is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the real images of {SHARED_DATA.parent.name}/data beside the repository, which are absent")
    return SHARED_DATA


@pytest.fixture(scope="session")
def folder_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder with train/ (96 images) and val/ (33) of three classes, which differ in colour."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 32), ("val", 11)):
        for label, colour in enumerate(((200, 60, 60), (60, 200, 60), (60, 60, 200))):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                height, width = rng.integers(40, 64, 2)
                coarse = rng.integers(-50, 50, (4, 4, 3)) + np.array(colour)
                picture = Image.fromarray(coarse.clip(0, 255).astype(np.uint8)).resize((width, height), Image.BICUBIC)
                picture.save(folder / f"{index:03}.jpg", quality=92)
    return root


@pytest.fixture(scope="session", autouse=True)
def _cache_of_all_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The cache folder of a session's tests, so that no test writes to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEIT_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for one test. It receives listings, and indexes of shards in read-only folders."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.delenv("DEIT_FAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "deit_fast"


@pytest.fixture(scope="session")
def photographs() -> list[NDArray[np.uint8]]:
    """Six generated images of different shapes, encoded."""
    from tests.views import six_photographs

    return six_photographs()


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adds the families' toy models to the zoo."""
    for name, architecture in TOYS.items():
        monkeypatch.setitem(ARCHITECTURES, name, architecture)
