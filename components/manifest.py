"""`deit-fast manifest`: the YAML of a component's job, for `kubectl apply -f -`."""

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence
from typing import NoReturn

from deit_fast.components import deit
from deit_fast.components.arguments import refuse
from deit_fast.components.kueue import build_request
from deit_fast.components.manifests import find_kinds
from deit_fast.components.manifests.pods import HELP, Place
from torchx.runner.config import load_sections
from torchx.specs import AppDef
from torchx.specs.builders import materialize_appdef

STAGES = {"pretrain": deit.pretrain, "finetune": deit.finetune, "evaluate": deit.evaluate}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"deit-fast: {message} (see {self.prog} --help)\n")


def render(stage: str, words: Sequence[str]) -> str:
    """The YAML documents of a stage's job, in the order in which they have to be created.

    words: options of this command, and arguments of the component with the stage's name. A wrong word prints a line on
    stderr and raises SystemExit with status 2. The same words give the same name, so applying them again creates
    nothing twice.
    """
    parser = _build_parser(stage)
    if "--help" in words:
        print(f"{parser.format_help()}\nAnd all that the component takes: torchx run deit.{stage} --help")
        sys.exit()
    options, rest = parser.parse_known_args(words)
    place = Place(**{name: getattr(options, name) for name in Place._fields})
    app = _make_app(stage, rest)
    return str(build_request(app, options.kind, place, app.name))


def _make_app(stage: str, words: list[str]) -> AppDef:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return materialize_appdef(STAGES[stage], words, load_sections("component").get(f"deit.{stage}", {}))
    except SystemExit:  # the component printed lines, or TorchX's parser a page whose last line says what is wrong
        _, error, message = said.getvalue().partition("error: ")
        if error:
            refuse(message.strip())
        sys.stderr.write(said.getvalue())
        raise


def _build_parser(stage: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"deit-fast manifest {stage}",
        add_help=False,  # -h is an argument of the component
        allow_abbrev=False,
        description="YAML of a job for kubectl apply -f -, from the role of the TorchX component deit." + stage,
    )
    kinds = sorted(find_kinds())
    parser.add_argument("--as", dest="kind", required=True, choices=kinds, help="kind of the job in the cluster")
    for name, default in Place._field_defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, metavar="TEXT", help=HELP[name])
    return parser
