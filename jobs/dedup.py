"""tunemill dedup: remove near-duplicates."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tunemill.cli import run_main
from tunemill.dedup.stage import STAGE
from tunemill.runner import run_stage_job

USAGE = """
usage: tunemill dedup --config run.yaml
       tunemill dedup --input texts.parquet --output DIR --text-columns text --threshold 0.95
       tunemill dedup --input pairs.parquet --output DIR --text-columns prompt,answer
       tunemill dedup --input new.parquet --output DIR --against EARLIER_RUN/dedup
       tunemill dedup --input train.parquet --output DIR --protect test.parquet
"""


def run(argv: Sequence[str]) -> None:
    """Run the stage, alone or within a run."""
    run_stage_job(STAGE, argv, USAGE)


if __name__ == "__main__":
    run_main(run, sys.argv[1:], "dedup")
