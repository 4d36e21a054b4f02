#!/usr/bin/env bash
# wandb 0.31.0: offline, Run.finish() may return before the run's file has its records.
#
# With mode "offline" a run is a file, run-ID.wandb, that another process (wandb-core) writes. finish() "ensures all data
# is synced" by its docstring. In more than half of all short runs the file has 7 bytes when finish() returns, which is the
# head of the format, and its records follow up to a second later. A program that copies or uploads the file at once
# takes an empty run. The end of the process is enough, because wandb's handler at exit waits for wandb-core; so is
# wandb.teardown().
#
# Output seen (Python 3.11.7, 2 cores): wandb 0.31.0: of 30 runs, 20 had no figures after finish(), 0 after teardown()
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'wandb==0.31.0'
cd "$work"
HOME=$work WANDB_MODE=offline WANDB_SILENT=true "$work/venv/bin/python" - <<'PYTHON'
from pathlib import Path

import wandb

runs, early, lost = 30, 0, 0
for number in range(runs):
    run = wandb.init(project="probe", dir=".", id=f"run{number}")
    run.log({"train/loss": 0.5}, step=1)
    run.finish()
    file = Path(run.settings.sync_file)
    early += b"train/loss" not in file.read_bytes()
    wandb.teardown()
    lost += b"train/loss" not in file.read_bytes()
print(f"wandb {wandb.__version__}: of {runs} runs, {early} had no figures after finish(), {lost} after teardown()")
assert early > 0, "this wandb waits for its file"
assert lost == 0, "this wandb loses a finished run"
PYTHON
