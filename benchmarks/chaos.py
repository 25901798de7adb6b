"""kill -9 of callers, budget actors, drivers and nodes at random moments: ``python benchmarks/chaos.py --seeds 20``.

Adds a line for each round to benchmarks/results/chaos.jsonl and rewrites chaos.md; exits with 1 where a promise was broken.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent
sys.path[:0] = [str(ROOT.parent / "tests")]

from llm.chaos import CONCURRENCY, KINDS, ROWS, Round, arena  # noqa: E402

RESULTS = ROOT / "results" / "chaos.jsonl"


def main() -> None:
    """Play the rounds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=100)
    options = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    good = True
    with tempfile.TemporaryDirectory() as folder, arena(Path(folder)) as made:
        for seed in range(options.first, options.first + options.seeds):
            played = made.play(KINDS[seed % len(KINDS)], seed)
            good &= played.good
            with RESULTS.open("a") as file:
                file.write(
                    json.dumps({"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **dataclasses.asdict(played)}) + "\n"
                )
            print(played, "good" if played.good else "BROKEN", flush=True)
            write_table()
    sys.exit(0 if good else 1)


def write_table() -> None:
    """One line for each kind of victim, over all recorded rounds."""
    rounds = []
    for line in RESULTS.read_text().splitlines():
        values = json.loads(line)
        at = values.pop("at")
        rounds.append((at, Round(**values)))
    lines = [
        "# kill -9",
        "",
        f"`python benchmarks/chaos.py`, {rounds[-1][0][:10]}, {os.cpu_count()} cores shared with other work.",
        f"Each round: {ROWS} rows,",
        f"{CONCURRENCY} calls in flight at most, a head and two worker nodes (simulated), one SIGKILL at a random moment.",
        "",
        "| killed | rounds | rows answered | counted answers lost | paid twice (most in a round) | of those not listed "
        "| rounds that kept every promise |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        some = [played for _, played in rounds if played.kind == kind]
        if not some:
            continue
        twice = [played.paid_twice for played in some]
        lines.append(
            f"| {kind} | {len(some)} | {sum(p.rows for p in some)} of {ROWS * len(some)} "
            f"| {sum(p.lost for p in some)} | {sum(twice)} ({max(twice)}) "
            f"| {sum(p.unlisted for p in some)} | {sum(p.good for p in some)} of {len(some)} |"
        )
    RESULTS.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
