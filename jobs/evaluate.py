"""tunemill evaluate: label probabilities before and after tuning."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tunemill.cli import run_main
from tunemill.evaluate.stage import STAGE
from tunemill.runner import run_stage_job

USAGE = """
usage: tunemill evaluate --config run.yaml
       tunemill evaluate --input DIR_OF_TEMPLATE --output DIR --labels positive,negative --base-model MODEL --adapter DIR
"""


def run(argv: Sequence[str]) -> None:
    """Run the stage, alone or within a run."""
    run_stage_job(STAGE, argv, USAGE)


if __name__ == "__main__":
    run_main(run, sys.argv[1:], "evaluate")
