#!/usr/bin/env bash
# torchx 0.7.0: a process can parse an option of `torchx run` once, even with a new parser for each command line.
#
# torchx.cli.argparse_util remembers the options that were given in a set of the class (torchxconfig.called_args), not of
# the parser or of the parse, to refuse an option that stands twice in one command. A program or a notebook that calls
# torchx.cli.main.main for a second job with `-s` or `--workspace` exits with status 1 and "-s is specified more than once",
# although each command names it once.
#
# Output seen (Python 3.11.7):
#   torchx 0.7.0: the first command parsed, the second exited with 1: "-s is specified more than once"
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'torchx==0.7.0'
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import logging
from importlib import metadata

from torchx.cli.main import create_parser, get_default_sub_cmds

messages = []
handler = logging.Handler()
handler.emit = lambda record: messages.append(record.getMessage())
logging.getLogger("torchx.cli.argparse_util").addHandler(handler)

command = ["run", "-s", "local_cwd", "utils.echo"]
first = create_parser(get_default_sub_cmds()).parse_args(command)
assert first.scheduler == "local_cwd"
status = None
try:
    create_parser(get_default_sub_cmds()).parse_args(command)
except SystemExit as end:
    status = end.code
print(f'torchx {metadata.version("torchx")}: the first command parsed, the second exited with {status}: "{messages[-1:][0]}"'
      if messages else "both parsed")
assert (status, messages) == (1, ["-s is specified more than once"]), "this torchx behaves otherwise"
PYTHON
