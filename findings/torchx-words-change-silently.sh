#!/usr/bin/env bash
# torchx 0.7.0: two kinds of words for a component's arguments arrive as something else, without an error.
#
# A `bool` argument is true for the word "true" in any case, and false for every other word: 1, yes, on and a slip of the
# keyboard. `torchx run ... --ema yes` thus runs, and does what `--ema false` does. argparse and click refuse a word that
# they do not know, and take 1, yes and on (click) as true.
#
# A `Dict[str, str]` argument is split at every "=", and empty parts are dropped: of the value of KEY==VALUE, the leading
# "=" is gone. NCCL reads such values: NCCL_IB_HCA==mlx5_0:1 asks for exactly that port, and NCCL_IB_HCA=mlx5_0:1
# for every port whose name begins so. KEY=a=b is refused, by an error about delimiters.
#
# Where: torchx/util/types.py (to_dict; decode_from_string has `.lower() == "true"`).
#
# Output seen:
#   torchx 0.7.0
#   --flag true           True
#   --flag 1              False
#   --flag yes            False
#   --flag on             False
#   --flag ture           False
#   --env A=x:1           {'A': 'x:1'}
#   --env A==x:1          {'A': 'x:1'}
#   --env A=x=y           ValueError
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'torchx==0.7.0'
cat >"$work/words.py" <<'PYTHON'
from importlib.metadata import version
from typing import Dict, Optional

from torchx.specs import AppDef, Role
from torchx.specs.builders import materialize_appdef


def component(flag: bool = False, env: Optional[Dict[str, str]] = None) -> AppDef:
    """A component that shows what it was given.

    Args:
        flag: a switch
        env: environment variables
    """
    return AppDef(name="shown", roles=[Role(name="role", image="", args=[str(flag), str(env)])])


def seen(option, word):
    try:
        arguments = materialize_appdef(component, [option, word]).roles[0].args
    except ValueError as error:
        return type(error).__name__
    return arguments[0 if option == "--flag" else 1]


print("torchx", version("torchx"))
expected = {
    ("--flag", "true"): "True",
    ("--flag", "1"): "False",
    ("--flag", "yes"): "False",
    ("--flag", "on"): "False",
    ("--flag", "ture"): "False",
    ("--env", "A=x:1"): "{'A': 'x:1'}",
    ("--env", "A==x:1"): "{'A': 'x:1'}",
    ("--env", "A=x=y"): "ValueError",
}
found = {words: seen(*words) for words in expected}
for (option, word), result in found.items():
    print(f"{option + ' ' + word:<21} {result}")
assert found == expected, "changed: expected what the comment above shows"
PYTHON
"$work/venv/bin/python" "$work/words.py"
