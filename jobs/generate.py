"""tunemill generate: ask models for labelled texts."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tunemill.cli import run_main
from tunemill.generate.stage import STAGE
from tunemill.runner import run_stage_job

USAGE = """
usage: tunemill generate --config run.yaml                     within a run
       tunemill generate --output DIR --template "..." ...     by itself
       tunemill generate --input prompts.csv --output DIR      your own prompts; template variables are its columns
       tunemill generate --config run.yaml --replay-failed     call again what failed
"""


def run(argv: Sequence[str]) -> None:
    """Run the stage, alone or within a run."""
    run_stage_job(STAGE, argv, USAGE)


if __name__ == "__main__":
    run_main(run, sys.argv[1:], "generate")
