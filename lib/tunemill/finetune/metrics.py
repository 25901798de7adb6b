"""metrics.jsonl and TensorBoard events of a run, right also after it went on from a checkpoint."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

from tunemill.store import Location

__all__ = ["MetricsFile", "Watcher", "read_metrics"]


def read_metrics(file: Location) -> list[dict[str, Any]]:
    """All complete lines; empty when there is no file."""
    try:
        text = file.read_text()
    except FileNotFoundError:
        return []
    records = []
    for line in text.splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            # The last line of a killed writer.
            continue
    return records


class MetricsFile:
    """Appends records; lines after ``first_step`` (of an attempt that died later than its checkpoint) are dropped first."""

    def __init__(self, file: Location, *, first_step: int, tensorboard: bool) -> None:
        self._file = file
        self._records = [record for record in read_metrics(file) if record["step"] <= first_step]
        file.write_text("".join(json.dumps(record) + "\n" for record in self._records))
        self._board: Any = None
        if tensorboard and not file.is_remote:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(log_dir=file.path.rsplit("/", 1)[0] + "/tensorboard", purge_step=first_step + 1)

    def add(self, record: dict[str, Any]) -> None:
        """Write one record. On an object store, which cannot append, only evaluations write (the whole file)."""
        self._records.append(record)
        if not self._file.is_remote:
            with open(self._file.path, "a", encoding="utf-8") as out:
                out.write(json.dumps(record) + "\n")
        elif "eval_loss" in record:
            self.flush()
        if self._board is not None:
            for name, value in record.items():
                if name not in ("step", "epoch"):
                    self._board.add_scalar(name, value, record["step"])

    def flush(self) -> None:
        """Make all records durable."""
        if self._file.is_remote:
            self._file.write_text("".join(json.dumps(record) + "\n" for record in self._records))
        if self._board is not None:
            self._board.flush()


class Watcher:
    """Calls ``seen`` for each new record of a metrics file that another process writes, until closed."""

    def __init__(self, file: Location, seen: Callable[[dict[str, Any]], None]) -> None:
        self._file, self._seen = file, seen
        self._interval_s = 15.0 if file.is_remote else 1.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="finetune-progress", daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        step = 0
        while not self._stop.wait(self._interval_s):
            for record in read_metrics(self._file):
                if record["step"] > step and "loss" in record:
                    step = record["step"]
                    self._seen(record)
