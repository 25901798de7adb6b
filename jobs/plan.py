"""tunemill plan: calls, tokens, cost and hours of a configuration, before anything is paid."""

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
from tunemill.pipeline import PipelineConfig, complete
from tunemill.resources import connect
from tunemill.store import Location

USAGE = """
usage: tunemill plan --config FILE [--generate.rows 5000 ...]     calls nobody
       tunemill plan --config FILE --pilot 20                     makes 20 real calls to each model first, kept for the run
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions(Options):
    """Flags of ``tunemill plan``."""

    pilot: Annotated[int, Field(ge=0)] = 0
    """Real calls to each model that sharpen the figures; they go into the run's journal and are not paid again."""


COMMAND = Command(job="plan", usage=USAGE, config_type=PipelineConfig, options_type=PlanOptions)


def run(argv: Sequence[str]) -> None:
    """Print the plan."""
    parsed = parse(COMMAND, argv)
    config = complete(build(PipelineConfig, parsed.values, parsed.where))
    if config.generate is None:
        raise ConfigError(f"{parsed.where}: has no section generate, so there are no calls to plan")
    journal = config.generate.journal or Location.of(config.run.output).join("generate", "journal").url
    if parsed.options.pilot:
        connect()
    found = plan(config.generate, seed=config.run.seed, journal=journal, pilot=parsed.options.pilot, progress=parsed.progress())
    sys.stdout.write(f"{render(found)}\n")


if __name__ == "__main__":
    run_main(run, sys.argv[1:], "plan")
