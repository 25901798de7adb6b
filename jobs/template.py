"""tunemill template: chat template, token ids and loss weights, proven right."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tunemill.chat.show import show_samples
from tunemill.chat.stage import STAGE
from tunemill.cli import parse, run_main
from tunemill.runner import run_stage_job, stage_command

USAGE = """
usage: tunemill template --config run.yaml
       tunemill template --input conversations.jsonl --output DIR --tokenizer mistral-common/v3 --max-length 4096
       tunemill template ... --show 3        print three samples with the trained tokens coloured
"""


def run(argv: Sequence[str]) -> None:
    """Run the stage, alone or within a run, and print samples when asked."""
    manifest = run_stage_job(STAGE, argv, USAGE)
    count = int(parse(stage_command(STAGE, USAGE), argv).values.get("show") or 0)
    if count:
        samples = manifest.details["samples"][:count]
        sys.stdout.write(f"{show_samples(samples, colour=sys.stdout.isatty())}\n")


if __name__ == "__main__":
    run_main(run, sys.argv[1:], "template")
