"""tunemill report: the HTML page of a finished or running run."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from tunemill.cli import Command, Options, parse, run_main
from tunemill.errors import ConfigError, DataError
from tunemill.report.page import write_report
from tunemill.store import Location

USAGE = """
usage: tunemill report RUN        writes RUN/report.html; any stage may still be missing
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoSettings:
    """This job has options only."""


COMMAND = Command(job="report", usage=USAGE, config_type=NoSettings, options_type=Options, positional="RUN")


def run(argv: Sequence[str]) -> None:
    """Write the page and print its path."""
    parsed = parse(COMMAND, argv)
    if parsed.positional is None:
        raise ConfigError("tunemill report: RUN is missing; name the folder of a run, such as runs/quickstart")
    folder = Location.of(parsed.positional)
    if not folder.join("run.yaml").exists() and not folder.files("manifest.json"):
        raise DataError(f"{folder.url}: is not the folder of a run (it has no run.yaml and no manifest.json)")
    sys.stdout.write(f"{write_report(folder).url}\n")


if __name__ == "__main__":
    run_main(run, sys.argv[1:], "report")
