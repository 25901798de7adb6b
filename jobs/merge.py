"""tunemill merge: the adapter of a run merged into its base model."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tunemill.cli import Command, Options, parse, run_main
from tunemill.config import build
from tunemill.errors import ConfigError
from tunemill.finetune.merge_config import MergeConfig
from tunemill.store import Location

USAGE = """
usage: tunemill merge RUN                    writes RUN/finetune/merged
       tunemill merge ADAPTER_DIR --output DIR
"""
COMMAND = Command(job="merge", usage=USAGE, config_type=MergeConfig, options_type=Options, positional="RUN")


def run(argv: Sequence[str]) -> None:
    """Merge, check and print where the model lies."""
    parsed = parse(COMMAND, argv)
    if parsed.positional is None:
        raise ConfigError("tunemill merge: RUN is missing; name the folder of a run, such as runs/quickstart")
    config = build(MergeConfig, parsed.values, parsed.where)
    from tunemill.finetune.merge import merge

    progress = parsed.progress()
    done = merge(Location.of(parsed.positional), config)
    progress.note(
        f"merge: on {done.probes} probes no probability differs by more than {done.probability_difference:.2g} ({done.dtype})"
    )
    sys.stdout.write(f"{done.folder.url}\n")


if __name__ == "__main__":
    run_main(run, sys.argv[1:], "merge")
