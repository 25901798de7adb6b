"""tunemill export: the kept rows as a Hugging Face DatasetDict with its card."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tunemill.cli import Command, Options, parse, run_main
from tunemill.config import build
from tunemill.errors import ConfigError
from tunemill.export.config import ExportConfig
from tunemill.export.dataset import export
from tunemill.store import Location

USAGE = """
usage: tunemill export RUN                           writes RUN/export; read it with datasets.load_from_disk
       tunemill export RUN --push-to-hub me/sentiment
"""
COMMAND = Command(job="export", usage=USAGE, config_type=ExportConfig, options_type=Options, positional="RUN")


def run(argv: Sequence[str]) -> None:
    """Write the dataset and print where it lies."""
    parsed = parse(COMMAND, argv)
    if parsed.positional is None:
        raise ConfigError("tunemill export: RUN is missing; name the folder of a run, such as runs/quickstart")
    config = build(ExportConfig, parsed.values, parsed.where)
    done = export(Location.of(parsed.positional), config, overwrite=parsed.options.overwrite)
    sys.stdout.write(f"{done.url or done.folder.url}\n")


if __name__ == "__main__":
    run_main(run, sys.argv[1:], "export")
