"""metrics.jsonl: a line for each record. The rest of deit_fast reads this file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deit_fast.runtime.files import atomic_path, json_text
from deit_fast.runtime.log_sinks import LogSink, Sink

Record = dict[str, Any]


def read_metrics(path: Path) -> list[Record]:
    """Records of a metrics.jsonl: objects with kind and step. Other lines, as a power cut leaves them, are left out."""
    records = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and "kind" in record and isinstance(record.get("step"), int):
                records.append(record)
    return records


class JsonLines(Sink):
    """Writes {"kind", "step", **values} as a line; non-finite values become null, since JSON has no NaN."""

    def __init__(self, folder: Path, step: int) -> None:
        path = folder / "metrics.jsonl"
        kept = [record for record in read_metrics(path) if record["step"] <= step]
        with atomic_path(path) as temporary:
            temporary.write_text("".join(json_text(record, None) + "\n" for record in kept), encoding="utf-8")
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (open for the whole run)

    def record(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        self._file.write(json_text({"kind": kind, "step": step, **values}, None) + "\n")

    def close(self) -> None:
        self._file.close()


LOG_SINK = LogSink(JsonLines, always=True)
