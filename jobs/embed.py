"""tunemill embed: texts to unit vectors."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tunemill.cli import run_main
from tunemill.embed.stage import STAGE
from tunemill.runner import run_stage_job

USAGE = """
usage: tunemill embed --config run.yaml
       tunemill embed --input texts.jsonl --output DIR --text-columns text
"""


def run(argv: Sequence[str]) -> None:
    """Run the stage, alone or within a run."""
    run_stage_job(STAGE, argv, USAGE)


if __name__ == "__main__":
    run_main(run, sys.argv[1:], "embed")
