"""Progress of the running stage: one live line in a terminal, plain log lines elsewhere.

It shows rows/s, dropped rows, remaining time and whatever figures the stage reports (tokens/s, cost,
errors). It never writes to stdout, which is kept for results.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from tunemill.store import Manifest

__all__ = ["Progress"]

log = logging.getLogger("tunemill")

_TERMINAL_INTERVAL_S = 0.2
_LOG_INTERVAL_S = 15.0


class Progress:
    """Progress of one stage at a time. ``quiet`` leaves only one line for each finished stage."""

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty() and not quiet
        self._quiet = quiet
        self._name = ""
        self._reset("")

    def _reset(self, name: str) -> None:
        self._name, self._rows, self._dropped, self._total, self._reached = name, 0, 0, 0, 0
        self._figures: dict[str, str] = {}
        self._started = self._shown = time.monotonic()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show the named stage while the block runs."""
        self._reset(name)
        if not self._quiet:
            self._line(f"{name}: started")
        try:
            yield
        finally:
            if self._live:
                self._stream.write("\r\x1b[2K")
                self._stream.flush()

    def total(self, rows: int) -> None:
        """Set how many rows the stage will handle (0: unknown)."""
        self._total = rows

    def advance(self, rows: int, *, dropped: int = 0) -> None:
        """Count rows as done."""
        self._rows += rows
        self._dropped += dropped
        self._show()

    def reached(self, rows: int, **figures: str) -> None:
        """Say how many rows have been worked on so far, where that runs ahead of what is written, with :meth:`figures`."""
        self._reached = rows
        self._figures.update(figures)
        self._show()

    def figures(self, **figures: str) -> None:
        """Set further figures to show, as text with units: ``cost="$0.12"``, ``tokens="310/s"``."""
        self._figures.update(figures)
        self._show()

    def note(self, text: str) -> None:
        """Say one thing now (what was chosen, what was normalised)."""
        if not self._quiet:
            self._line(f"{self._name}: {text}" if self._name else text)

    def skipped(self, name: str, rows: int) -> None:
        """Say that the stage had finished before."""
        self._line(f"{name}: already done, {rows:,} rows")

    def finished(self, manifest: Manifest) -> None:
        """Say what the stage did."""
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in manifest.rows_dropped.items())
        lost = f", dropped {sum(manifest.rows_dropped.values()):,} ({reasons})" if reasons else ""
        self._line(f"{manifest.stage}: {manifest.rows_in:,} rows in, {manifest.rows_kept:,} kept{lost}, {manifest.seconds:.1f} s")

    def _show(self) -> None:
        now = time.monotonic()
        if self._quiet or now - self._shown < (_TERMINAL_INTERVAL_S if self._live else _LOG_INTERVAL_S):
            return
        self._shown = now
        elapsed = max(now - self._started, 1e-9)
        rows = max(self._rows, self._reached)
        parts = [f"{rows:,}{f' of {self._total:,}' if self._total else ''} rows", f"{rows / elapsed:,.1f} rows/s"]
        if self._dropped:
            parts.append(f"{self._dropped:,} dropped")
        if self._total and rows:
            parts.append(f"{_duration((self._total - rows) * elapsed / rows)} left")
        parts += [f"{name} {value}" for name, value in self._figures.items()]
        text = f"{self._name}: {', '.join(parts)}"
        if self._live:
            self._stream.write(f"\r\x1b[2K{text[:200]}")
            self._stream.flush()
        else:
            log.info(text)

    def _line(self, text: str) -> None:
        if self._live:
            self._stream.write(f"\r\x1b[2K{text}\n")
            self._stream.flush()
        else:
            log.info(text)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
