"""tunemill clean: strip padding from answers."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tunemill.clean.stage import STAGE
from tunemill.cli import run_main
from tunemill.runner import run_stage_job

USAGE = """
usage: tunemill clean --config run.yaml
       tunemill clean --input answers.parquet --output DIR --text-columns text
"""


def run(argv: Sequence[str]) -> None:
    """Run the stage, alone or within a run."""
    run_stage_job(STAGE, argv, USAGE)


if __name__ == "__main__":
    run_main(run, sys.argv[1:], "clean")
