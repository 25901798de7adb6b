"""tunemill merge: the adapter merged into its base model, with a check that both answer alike."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tunemill.cli import Command, parse, run_main
from tunemill.config import build
from tunemill.errors import ConfigError
from tunemill.finetune.merge_config import MergeConfig
from tunemill.store import Location

USAGE = """
usage: tunemill merge RUN [--output DIR]       RUN is the folder of a run, or of an adapter
"""
COMMAND = Command(job="merge", usage=USAGE, config_type=MergeConfig, section="merge", positional="RUN")


def run(argv: Sequence[str]) -> None:
    """Merge and say where the model is and how close it is."""
    parsed = parse(COMMAND, argv)
    if parsed.positional is None:
        raise ConfigError("tunemill merge: RUN is missing; name the folder of a run, such as runs/quickstart")
    config = build(MergeConfig, parsed.values, parsed.where)
    from tunemill.finetune.merge import merge

    done = merge(Location.of(parsed.positional), config)
    close = f"probabilities of {done.probes} probes differ by at most {done.probability_difference:.2g}"
    sys.stdout.write(f"{done.folder.url}: {done.dtype}, {close}\n")


if __name__ == "__main__":
    run_main(run, sys.argv[1:], "merge")
