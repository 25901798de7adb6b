"""tunemill finetune: loRA fine-tuning on Ray Train."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tunemill.cli import run_main
from tunemill.finetune.stage import STAGE
from tunemill.runner import run_stage_job

USAGE = """
usage: tunemill finetune --config run.yaml
       tunemill finetune --input DIR_OF_TEMPLATE --output DIR --base-model MODEL
"""


def run(argv: Sequence[str]) -> None:
    """Run the stage, alone or within a run."""
    run_stage_job(STAGE, argv, USAGE)


if __name__ == "__main__":
    run_main(run, sys.argv[1:], "finetune")
