#!/usr/bin/env bash
# timm 1.0.31: importing timm.optim raises torch.compile's recompile limit of the whole process to a million.
#
# torch.compile recompiles a function for new shapes up to torch._dynamo.config.recompile_limit times, 8 by default, and
# then runs it eagerly. timm's Kron optimizer sets the limit (by its former name, cache_size_limit) to 1,000,000 at module
# level, and timm/optim/__init__.py imports Kron: a program that takes timm's AdamW, or only timm's own train.py, has no
# limit any more. A function whose shapes keep changing then compiles at every call instead of becoming eager.
#
# Output seen (Python 3.11.7):
#   torch 2.14.1: limit 8; after import timm.optim of 1.0.31: 1000000
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'torch==2.14.1' 'torchvision==0.29.1' 'timm==1.0.31'
"$work/venv/bin/python" - <<'PYTHON'
from importlib import metadata

import torch
import torch._dynamo

before = torch._dynamo.config.recompile_limit
import timm.optim  # noqa: E402

after = torch._dynamo.config.recompile_limit
print(f"torch {metadata.version('torch')}: limit {before}; after import timm.optim of {metadata.version('timm')}: {after}")
assert (before, after) == (8, 1_000_000), "this timm behaves otherwise"
PYTHON
