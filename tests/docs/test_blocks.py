"""Every command and every Python block of README and docs/: run on the demo, or checked where it needs other data.

tests/docs/reader.py has the rules. README is run each time, and the other pages are checked. `-m soak` runs all pages.
"""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from deit_fast.cli.main import main
from tests.docs.blocks import Block, blocks_of, commands_of, pages, programs_of
from tests.docs.reader import SHORT, Reader, short_trainings

PAGES = pages()
COMMANDS = {"deit-fast", "deit_fast.cli", "pipelines.deit3"}
WORDS = [f"{key}={value}" for key, value in SHORT.items()]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/ after the first half of `make demo`, of one epoch, and a few images of one's own in photos/ and more/."""
    folder = tmp_path_factory.mktemp("demo")
    digits, runs = str(folder / "runs" / "digits"), folder / "runs" / "demo"
    assert main(["data", "demo", digits]) == 0
    pretrained = str(runs / "pretrain")
    assert main(["train", "demo_pretrain", "--data", digits, "--out", pretrained, *WORDS]) == 0
    for label in range(3):
        for index, path in enumerate(sorted((folder / "runs/digits/train" / str(label)).iterdir())[:8]):
            for copy in (folder / "photos" / f"class{label}" / path.name, folder / "more" / path.name):
                copy.parent.mkdir(parents=True, exist_ok=True)
                Image.open(path).resize((80, 60 + index)).save(copy)
    return folder


@pytest.fixture(scope="module")
def finetuned(demo: Path) -> Path:
    """The demo with its second half."""
    runs = demo / "runs" / "demo"
    words = ["--data", str(demo / "runs" / "digits"), "--init", str(runs / "pretrain"), "--out", str(runs / "finetune")]
    assert main(["train", "demo_finetune", *words, *WORDS]) == 0
    return demo


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Runs that commands of any page make from data that are not here."""
    reader = Reader(tmp_path_factory.mktemp("elsewhere"), real=False)
    for page in PAGES:
        for block in blocks_of(page):
            for command in commands_of(block) if block.kind == "console" and block.title is None else ():
                for program in programs_of(command.text, reader.variables):
                    start = next((at for at, word in enumerate(program.words, 1) if word in COMMANDS), None)
                    if start is not None and reader.needs_elsewhere(words := program.words[start:]):
                        reader.remember(words)
    return reader.elsewhere


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the demo's folder, as the working directory. The first page does without the finetuned run."""
    whole = request.node.get_closest_marker("soak") is not None
    copy = tmp_path / "work"
    shutil.copytree(request.getfixturevalue("finetuned" if whole else "demo"), copy)
    monkeypatch.chdir(copy)
    return copy


def follow(page: str, reader: Reader) -> None:
    with short_trainings():
        for block in blocks_of(page):
            reader.follow(block)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_can_be_followed(
    page: str, tmp_path: Path, elsewhere: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reader = Reader(tmp_path, real=False, elsewhere=elsewhere)
    follow(page, reader)
    assert not any(block.kind in ("sh", "bash", "shell") for block in blocks_of(page)), "expected ```console"


@pytest.mark.parametrize("page", [PAGES[0], *(pytest.param(page, marks=pytest.mark.soak) for page in PAGES[1:])])
@pytest.mark.filterwarnings("ignore:.*fitted to:UserWarning")
def test_every_block_runs(page: str, folder: Path, elsewhere: set[str]) -> None:
    reader = Reader(folder, real=True, elsewhere=elsewhere)
    follow(page, reader)
    print(f"{page}: {len(reader.ran)} run, {len(reader.checked)} checked")


@pytest.mark.parametrize(
    "text",
    [
        "$ deit-fast train demo_pretrain --data runs/digits --out runs/x optim.learning_rate=1",
        "$ deit-fast train demo_pretrain --data /data/imagenet --out runs/x --epochs 3",
        "$ deit-fast evaluate runs/nothing --data runs/digits",
        "$ deit-fast show no_such_recipe",
        "$ torchx run -s local_cwd deit.pretrain --recipe no_such_recipe --data /data/imagenet --out runs/x",
        "$ deit-fast pipeline --size enormous --data /data/imagenet --out runs/x",
        "$ make coffee",
        "$ pip install 'deit_fast[nothing]'",
        "$ deitfast train",
    ],
)
def test_what_does_not_work_is_noticed(text: str, folder: Path) -> None:
    reader = Reader(folder, real=True)
    with pytest.raises(AssertionError, match=r"page\.md:1"):
        reader.follow(Block("page.md", 1, "console", None, text + "\n"))


def test_a_command_goes_on_in_the_next_line() -> None:
    text = '$ MOUNTS=a,b\n$ run -m "$MOUNTS" \\\n      x=1 2>&1 > out.json  # why\nshown\n$ a | b <<EOF\nc\nEOF\nd\n'
    first, second, third = commands_of(Block("page.md", 3, "console", None, text))
    assert (second.place, second.shown, third.shown) == ("page.md:4", ("shown",), ("d",))
    variables: dict[str, str] = {}
    assert programs_of(first.text, variables) == []
    (program,) = programs_of(second.text, variables)
    assert (program.words, program.stdout) == (("run", "-m", "a,b", "x=1"), "out.json")
    assert [each.words for each in programs_of(third.text, variables)] == [("a",), ("b",)]
