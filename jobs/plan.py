"""tunemill plan: calls, tokens, cost and hours of a configuration; calls nobody, unless a pilot is asked for."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from tunemill.cli import Command, Options, parse, run_main
from tunemill.config import build
from tunemill.errors import ConfigError
from tunemill.generate.plan import plan
from tunemill.generate.plan_table import render
from tunemill.pipeline import PipelineConfig
from tunemill.runner import exclusive
from tunemill.store import Location

USAGE = """
usage: tunemill plan --config FILE [--generate.rows 5000 ...]
       tunemill plan --config FILE --pilot 20      20 real calls to each model first; the run does not buy them again
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions(Options):
    """Flags of ``tunemill plan``."""

    pilot: Annotated[int, Field(ge=0)] = 0
    """Real calls to each model, to narrow the ranges; their answers are kept in the run's journal."""


COMMAND = Command(job="plan", usage=USAGE, config_type=PipelineConfig, options_type=PlanOptions)


def run(argv: Sequence[str]) -> None:
    """Print the plan."""
    parsed = parse(COMMAND, argv)
    config = build(PipelineConfig, parsed.values, parsed.where)
    if config.generate is None:
        raise ConfigError(f"{parsed.where}: has no section generate, so there is nothing to plan: nobody is called")
    folder = Location.of(config.run.output)
    journal = config.generate.journal or folder.join("generate", "journal").url
    options = {"seed": config.run.seed, "journal": journal, "pilot": parsed.options.pilot, "progress": parsed.progress()}
    if parsed.options.pilot:
        with exclusive(folder):
            made = plan(config.generate, **options)
    else:
        made = plan(config.generate, **options)
    sys.stdout.write(render(made))


if __name__ == "__main__":
    run_main(run, sys.argv[1:], "plan")
