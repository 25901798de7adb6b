"""tunemill split: train, validation and test."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tunemill.cli import run_main
from tunemill.runner import run_stage_job
from tunemill.split.stage import STAGE

USAGE = """
usage: tunemill split --config run.yaml
       tunemill split --input rows.parquet --output DIR --test-fraction 0.2
"""


def run(argv: Sequence[str]) -> None:
    """Run the stage, alone or within a run."""
    run_stage_job(STAGE, argv, USAGE)


if __name__ == "__main__":
    run_main(run, sys.argv[1:], "split")
