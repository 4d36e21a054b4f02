"""A reader who does what a page says: in a folder with the demo's data and runs, and with nothing of ImageNet's.

What a command needs decides how it is followed, by rule:

* A command on the demo's data, or on a file that an earlier command of the page made, is run.
* A command that names a place elsewhere (`_ELSEWHERE`: /data, an object store, published weights, ...), or a run that
  such a command makes, is checked instead: its options are parsed and its recipe is made. Nothing is started.
* A pipeline, a TorchX component and a job's YAML are made with everything in them, and not submitted.
* `make TARGET` and `pip install` are looked up. Other programs (`_OUTSIDE`) are the reader's own.

Trainings have one epoch.
"""

import contextlib
import functools
import importlib
import inspect
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import deit_fast
from deit_fast.cli.main import main
from deit_fast.zoo import ARCHITECTURES, find_weights_row
from deit_fast.zoo.architectures import ALIASES
from tests.conftest import ROOT
from tests.docs.blocks import Block, Command, Program, commands_of, programs_of
from tests.docs.checks import check_command, check_extras, check_name, check_recipe, launched, outputs

SHORT = {"schedule.epochs": "1", "schedule.warmup_epochs": "0"}
"""The words of every training here. A page's own words of these names are checked, and then left out."""

_ELSEWHERE = re.compile(r"(^|[=,:])(/(data|datasets|shared|scratch|runs|mnt|imagenet)\b|(s3|gs|hf|https?|file)://)")
_OWN_WEIGHTS = (".pth", ".pt", ".msgpack", ".safetensors", ".bin", ".pdparams")
_CHECKED = {"push", "benchmark"}  # uploads, and takes minutes
_OUTSIDE = {
    ".", "apt-get", "aws", "cat", "cd", "cp", "curl", "docker", "git", "head", "helm", "jupyter", "kind", "kubectl",
    "less", "ln", "ls", "mkdir", "mv", "nvidia-smi", "python3", "rm", "sacct", "sbatch", "scancel", "scontrol",
    "sha256sum", "source", "squeue", "srun", "sudo", "tail", "tar", "tensorboard", "unzip", "watch", "wget", "xdg-open",
}  # fmt: skip


class Reader:
    """Follows pages in `folder`, the working directory. `real`: runs what the demo has the data for; else checks it."""

    def __init__(self, folder: Path, real: bool, elsewhere: set[str] | None = None) -> None:
        self.folder, self.real = folder, real
        self.elsewhere = set() if elsewhere is None else elsewhere
        """Runs and files that commands make from what is elsewhere; of all pages that were read."""
        self.variables: dict[str, str] = {}
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.ran: list[str] = []
        """Places of what was run."""
        self.checked: list[str] = []
        """Places of what was checked alone."""

    def follow(self, block: Block) -> None:
        """Does what a block says. Raises AssertionError, with its place in the page, for what does not work."""
        if block.title is not None:
            self._write(block)
        elif block.kind == "console":
            for command in commands_of(block):
                self._command(command)
        elif block.kind == "python":
            self._python(block)
        elif block.kind == "toml":
            check_recipe(block.place, block.text, self.folder / "block.toml")
            self.checked.append(block.place)

    def _write(self, block: Block) -> None:
        """A block with a title is that file. Those of docs/extending.md are followed by tests/test_extending.py."""
        if block.page == "docs/extending.md":
            return
        path = self.folder / str(block.title)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
        if path.suffix == ".toml":
            check_recipe(block.place, block.text, path)
        elif path.suffix == ".py":
            compile(block.text, block.place, "exec")
        self.checked.append(block.place)

    def _python(self, block: Block) -> None:
        code = compile("\n" * (block.line - 1) + block.text, block.page, "exec")
        if self.real and not self._reads_elsewhere(block.text):
            exec(code, self.names)
            self.ran.append(block.place)
            return
        for name in re.findall(r"\bdeit_fast((?:\.\w+)+)", block.text):
            check_name(name.removeprefix(".").split("."), block.place)
        self.checked.append(block.place)

    def _command(self, command: Command) -> None:
        for program in programs_of(command.text, self.variables):
            said = io.StringIO()
            ran: bool | None = None
            try:
                with contextlib.redirect_stderr(said):
                    ran = self.follow_program(program)
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
            except (AssertionError, RuntimeError, ValueError) as error:
                raise AssertionError(f"{command.place}: {command.text}\n{error}") from error
            shown = [line for line in command.shown if line.startswith("deit-fast:")]
            if status and not (ran is None and shown):  # a page may show a refusal
                raise AssertionError(f"{command.place}: {command.text}\nends with {status}: {said.getvalue()[-2000:]}")
            if ran is not None:
                (self.ran if ran else self.checked).append(command.place)

    def follow_program(self, program: Program) -> bool | None:
        """Whether it was run; None for one that is not ours. Raises SystemExit with a status other than 0."""
        name, *words = program.words
        if name == "eval":
            return self.follow_program(programs_of(words[0].removeprefix("$(").removesuffix(")"), self.variables)[0])
        if name == "make":
            for word in (word for word in words if "=" not in word and not word.startswith("-")):
                targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
                assert word in targets, f"make {word}: expected one of {targets}"
            return False
        if name.endswith("pip") and words[:1] == ["install"]:
            check_extras(" ".join(words))
            return False
        if name == "torchrun" or words[:2] == ["-m", "deit_fast.runtime.torchrun"]:
            name, *words = launched(words if name == "torchrun" else words[2:])
        if name == "torchx":
            return self._torchx(words)
        if name == "bash" or name.endswith(".sh"):
            script = words[0] if name == "bash" else name
            assert (ROOT / script).exists() or script in self.elsewhere, f"{script}: no such file"
            return False
        if name in ("python", "python3") and words[:1] == ["-m"] and words[1] != "venv":
            name, words = {"deit_fast.cli": "deit-fast"}.get(words[1], words[1]), words[2:]
        elif name == "python" and words[0].endswith(".py"):
            return self._script(words)
        if name in ("pipelines.deit3", "deit_fast.pipelines.deit3"):
            name, words = "deit-fast", ["pipeline", *words]
        elif name in ("benchmarks", "deit_fast.benchmarks"):
            name, words = "deit-fast", ["benchmark", *words]
        if name == "deit-fast":
            with self._stdout(program.stdout):
                return self._deit_fast(words)
        assert name in _OUTSIDE or name in ("venv", "pytest", "ruff", "mypy", "tests.soak"), f"{name}: no such program"
        return None

    def _deit_fast(self, words: Sequence[str]) -> bool:
        if words[0] == "pipeline":
            return self._pipeline(list(words[1:]))
        if words[0] == "benchmark":
            parser = importlib.import_module("deit_fast.benchmarks.__main__").build_parser()
            parser.parse_args(words[1:])
            return False
        check_command(words)
        always = words[0] in ("zoo", "completion", "manifest", "show") or {"--help", "--version"} & set(words)
        if not always and (words[0] in _CHECKED or not self.real or self.needs_elsewhere(words)):
            self.remember(words)
            return False
        _end(main(list(words)))
        if words[0] == "train":
            (out,) = (word for word in outputs(words) if (self.folder / word / "recipe.json").exists())
            epochs = json.loads((self.folder / out / "recipe.json").read_text(encoding="utf-8"))["schedule"]["epochs"]
            assert epochs == float(SHORT["schedule.epochs"]), f"{out}: trained for {epochs} epochs"
        return True

    def _pipeline(self, words: list[str]) -> bool:
        """Makes every job of a pipeline, where the page's words would submit them."""
        pipeline = importlib.import_module("deit_fast.pipelines.deit3")
        words = [word for word in words if not word.startswith("--dry-run")]
        with contextlib.redirect_stdout(io.StringIO()):
            _end(pipeline.main([*words, *([] if "--manifests" in words else ["--dry-run=full"])]))
        self.remember(words)
        return False

    def _torchx(self, words: Sequence[str]) -> bool:
        """Makes a component's job, and parses TorchX's other commands."""
        from torchx.cli.argparse_util import ArgOnceAction, torchxconfig
        from torchx.cli.main import create_parser, get_sub_cmds

        ArgOnceAction.called_args.clear()  # its parsers refuse an option that the process has seen before
        torchxconfig.called_args.clear()
        parser = create_parser(get_sub_cmds())
        if words[0] == "run":
            words = ["run", "--dryrun", "--workspace", "", *words[1:]]
        arguments = parser.parse_args(words)
        if words[0] == "run":
            with contextlib.redirect_stdout(io.StringIO()), contextlib.chdir(ROOT):
                arguments.func(arguments)
            self.remember(words)
        return False

    def _script(self, words: Sequence[str]) -> bool:
        """A script of the repository, or one that the page wrote, runs in this process."""
        import runpy
        import sys

        path = next((each for each in (self.folder / words[0], ROOT / words[0]) if each.exists()), None)
        assert path is not None, f"{words[0]}: no such file"
        if not self.real or self.needs_elsewhere(words):
            compile(path.read_text(encoding="utf-8"), str(path), "exec")
            return False
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
            patch.setattr(sys, "argv", list(words))
            try:
                runpy.run_path(str(path), run_name="__main__")
            except SystemExit as end:
                _end(end.code if isinstance(end.code, int) else int(end.code is not None))
        return True

    def _is_elsewhere(self, word: str) -> bool:
        """Whether a word names what the demo has not: by its form, or because it was made from such things."""
        if _ELSEWHERE.search(word):
            return True
        if "=" in word or word.startswith("-") or (self.folder / word).exists() or not word:
            return False
        if any(word == place or word.startswith(f"{place}/") for place in self.elsewhere):
            return True
        if "/" not in word and word.endswith(_OWN_WEIGHTS):  # a file that the reader has
            return True
        return bool(re.fullmatch(r"[\w@:.]+", word)) and find_weights_row(word) is not None

    def _reads_elsewhere(self, code: str) -> bool:
        """Whether Python needs what the demo has not. A model's name stands for weights only where weights are read."""
        if re.search(r"pretrained=True", code):
            return True
        read = set(re.findall(r"(?:load_model\(|evaluate\(|(?:init|pretrained|teacher)=)\s*\"([^\"]+)\"", code))
        texts, names = re.findall(r"\"([^\"\n]+)\"", code), {*ARCHITECTURES, *ALIASES}
        return any(self._is_elsewhere(text) for text in texts if text in read or text not in names)

    def needs_elsewhere(self, words: Sequence[str]) -> bool:
        """Whether a command reads what the demo has not, or writes to a store."""
        made = outputs(words)
        return any(_ELSEWHERE.search(word) if word in made else self._is_elsewhere(word) for word in words)

    def remember(self, words: Sequence[str]) -> None:
        """Notes what a command would have made."""
        self.elsewhere.update(word.removeprefix("--out=").rstrip("/") for word in outputs(words))

    @contextlib.contextmanager
    def _stdout(self, file: str | None) -> Iterator[None]:
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            yield
        if file is not None and file != "/dev/null":
            path = self.folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.getvalue(), encoding="utf-8")


@contextlib.contextmanager
def short_trainings() -> Iterator[None]:
    """Every training of deit_fast.train, and of the command, has the words of SHORT."""

    def shortened(words: Iterable[str]) -> list[str]:
        kept = [word for word in words if word.split("=")[0] not in SHORT]
        return [*kept, *(f"{key}={value}" for key, value in SHORT.items())]

    run = importlib.import_module("deit_fast.training.run")  # where the command and deit_fast.train find it
    real_train = run.train
    signature = inspect.signature(real_train)

    @functools.wraps(real_train)
    def train(*arguments: Any, **options: Any) -> Any:
        bound = signature.bind(*arguments, **options)
        bound.arguments["overrides"] = shortened(bound.arguments.get("overrides", ()))
        return real_train(*bound.args, **bound.kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "train", train)
        patch.setattr(deit_fast, "train", train, raising=False)
        yield


def _end(status: int) -> None:
    if status:
        raise SystemExit(int(status))
