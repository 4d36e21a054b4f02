"""The pieces for a machine without a network: joined in their order, and refused where one is missing or damaged."""

import hashlib
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.conftest import ROOT


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "benchmarks" / "offline.sh"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def pieces(tmp_path: Path) -> list[Path]:
    """Three pieces of an archive of two modules, and its sum, as `make` leaves them."""
    folder, site = tmp_path / "out", tmp_path / "there"
    (site / "package").mkdir(parents=True)
    (site / "package" / "__init__.py").write_text("answer = 42\n" * 1000)
    (site / "one.py").write_text("import package\n")
    folder.mkdir()
    whole = tmp_path / "site.tgz"
    with tarfile.open(whole, "w:gz") as archive:
        archive.add(site, ".")
    content = whole.read_bytes()
    third = len(content) // 3 + 1
    for number in range(3):
        (folder / f"site.tgz.{number + 1}-of-3").write_bytes(content[number * third : (number + 1) * third])
    (folder / "site.tgz.sha256").write_text(hashlib.sha256(content).hexdigest() + "\n")
    return sorted(folder.glob("*-of-3"))


def test_pieces_are_joined_call_by_call(pieces: list[Path], tmp_path: Path) -> None:
    site = tmp_path / "site"
    for piece in pieces:
        assert run("join", piece, site).returncode == 0
    assert {path.name for path in site.iterdir()} == {"package", "one.py"}
    assert (site / "package" / "__init__.py").read_text() == "answer = 42\n" * 1000


def test_begun_again_it_starts_at_the_first(pieces: list[Path], tmp_path: Path) -> None:
    for piece in [*pieces[:2], *pieces]:
        assert run("join", piece, tmp_path / "site").returncode == 0
    assert (tmp_path / "site" / "one.py").exists()


@pytest.mark.parametrize(
    ("order", "damaged", "says"),
    [
        ([0, 2], None, "expected piece 2 next"),
        ([1], None, "expected piece 1 next"),
        ([0, 0, 2], None, "expected piece 2 next"),
        ([0, 1, 2], 1, "the pieces are damaged"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(
    order: list[int], damaged: int | None, says: str, pieces: list[Path], tmp_path: Path
) -> None:
    if damaged is not None:
        content = bytearray(pieces[damaged].read_bytes())
        content[len(content) // 2] ^= 1
        pieces[damaged].write_bytes(content)
    *_, last = (run("join", pieces[number], tmp_path / "site") for number in order)
    assert last.returncode == 2
    assert says in last.stderr
    assert last.stderr.count("\n") == 1
    assert not (tmp_path / "site" / "one.py").exists()


@pytest.mark.parametrize("words", [(), ("join", "x"), ("make",), ("mkae", "x"), ("join", "/etc/hosts", "/tmp/x")])
def test_a_mistake_costs_the_usage_or_a_line(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert "offline.sh" in done.stderr


def test_nothing_is_made_where_something_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("make", tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path}: expected an empty folder" in done.stderr
