"""The whole system on one page: prompts or raw rows in, a tuned and evaluated model with its report out.

    tunemill run --config jobs/configs/quickstart.yaml      or      python jobs/pipeline.py --config ...

Each stage reads what the one before it kept, writes ``RUN/<stage>/`` and is skipped when it is done.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from tunemill.chat.stage import STAGE as TEMPLATE
from tunemill.clean.stage import STAGE as CLEAN
from tunemill.cli import Command, Options, parse, run_main
from tunemill.config import build
from tunemill.dedup.stage import STAGE as DEDUP
from tunemill.embed.stage import STAGE as EMBED
from tunemill.evaluate.stage import STAGE as EVALUATE
from tunemill.finetune.stage import STAGE as FINETUNE
from tunemill.generate.stage import STAGE as GENERATE
from tunemill.pipeline import PipelineConfig, complete, stage_names
from tunemill.report.page import write_report
from tunemill.runner import Run, exclusive
from tunemill.split.stage import STAGE as SPLIT
from tunemill.stage import Stage
from tunemill.store import Location

STAGES: tuple[Stage[Any], ...] = (
    GENERATE,  # prompts           -> answers of every model, paid once, within the account's limits
    CLEAN,  #    answers           -> one target text each, padding cut off
    EMBED,  #    texts             -> unit vectors
    DEDUP,  #    vectors           -> rows without near-duplicates, and their groups
    SPLIT,  #    rows              -> train, validation, test; no group on two sides
    TEMPLATE,  # rows              -> token ids and loss weights in the model's own chat template
    FINETUNE,  # train, validation -> a LoRA adapter
    EVALUATE,  # test              -> label probabilities before and after tuning
)

USAGE = """
usage: tunemill run --config FILE [--generate.rows 500 ...]
       python jobs/pipeline.py --config FILE ...
"""
COMMAND = Command(job="run", usage=USAGE, config_type=PipelineConfig, options_type=Options)


def run(argv: Sequence[str]) -> None:
    """Run the stages of a configuration in order, then write the report."""
    parsed = parse(COMMAND, argv)
    config = complete(build(PipelineConfig, parsed.values, parsed.where))
    stages = [stage for stage in STAGES if stage.name in stage_names(config)]
    whole = Run(Location.of(config.run.output), config, parsed.progress(), parsed.options.overwrite)
    with exclusive(whole.folder):
        whole.refuse_early(stages)
        whole.write_config()
        for stage in stages:
            whole.stage(stage)
        page = write_report(whole.folder)
    sys.stdout.write(f"{page.url}\n")


if __name__ == "__main__":
    run_main(run, sys.argv[1:], "run")
