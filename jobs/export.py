"""tunemill export: a run's kept rows as a Hugging Face DatasetDict with its card."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tunemill.cli import Command, parse, run_main
from tunemill.config import build
from tunemill.errors import ConfigError
from tunemill.export.config import ExportConfig
from tunemill.export.dataset import export
from tunemill.store import Location

USAGE = """
usage: tunemill export RUN [--output DIR] [--push-to-hub NAME]
"""
COMMAND = Command(job="export", usage=USAGE, config_type=ExportConfig, section="export", positional="RUN")


def run(argv: Sequence[str]) -> None:
    """Write the dataset and say where it is."""
    parsed = parse(COMMAND, argv)
    if parsed.positional is None:
        raise ConfigError("tunemill export: RUN is missing; name the folder of a run, such as runs/quickstart")
    config = build(ExportConfig, parsed.values, parsed.where)
    done = export(Location.of(parsed.positional), config, overwrite=parsed.options.overwrite)
    counts = ", ".join(f"{split} {rows:,}" for split, rows in done.rows.items())
    sys.stdout.write(f"{done.folder.url}: {counts} rows{f', {done.url}' if done.url else ''}\n")


if __name__ == "__main__":
    run_main(run, sys.argv[1:], "export")
