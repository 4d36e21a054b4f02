#!/usr/bin/env bash
# tensorboard 2.21.0: the event files that one process opens in one folder within one second are read in the wrong order
# from the eleventh on.
#
# A file's name is events.out.tfevents.SECOND.HOST.PROCESS.NUMBER, and the number, which counts the process's writers, is
# not padded as the second is. Readers (EventAccumulator, the server) take the files in the order of their names as text:
# .10 and .11 come between .1 and .2. What a later writer wrote is then read before what it continues, and a restart mark
# (the purge_step of a SummaryWriter) in the later file purges nothing: the value that it should have replaced stays.
# Seen as a test that failed only where ten other writers had been opened by the same process before.
#
# Output seen:
#   tensorboard 2.21.0
#   written [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
#   read    [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'tensorboard==2.21.0' 'numpy==2.4.6'
cat >"$work/order.py" <<'PYTHON'
import sys
import time

import tensorboard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

folder = sys.argv[1]
time.sleep(1.0 - time.time() % 1.0)  # the second is young: all twelve files are of it
for step in range(12):
    writer = EventFileWriter(folder)
    value = Summary.Value(tag="loss", simple_value=float(step))
    writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=[value])))
    writer.close()
board = EventAccumulator(folder)
board.Reload()
read = [event.step for event in board.Scalars("loss")]
print("tensorboard", tensorboard.__version__)
print("written", list(range(12)))
print("read   ", read)
assert read == sorted(range(12), key=str), "changed: files are no longer read in the order of their names as text"
PYTHON
"$work/venv/bin/python" "$work/order.py" "$work/events" 2>/dev/null
