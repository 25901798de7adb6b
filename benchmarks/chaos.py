"""kill -9 of callers, budget actors, drivers and nodes at random moments: ``python benchmarks/chaos.py --seeds 20``.

``--journal s3`` keeps the journal in a bucket of moto's server instead of a folder. Adds a line for each round to
benchmarks/results/chaos.jsonl and rewrites chaos.md; exits with 1 where a promise was broken.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent
sys.path[:0] = [str(ROOT.parent / "tests")]

from llm.chaos import CONCURRENCY, KINDS, ROWS, WINDOW_S, Round, arena  # noqa: E402

RESULTS = ROOT / "results" / "chaos.jsonl"


def main() -> None:
    """Play the rounds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=100)
    parser.add_argument("--journal", choices=("disk", "s3"), default="disk")
    options = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    good = True
    with tempfile.TemporaryDirectory() as folder, arena(Path(folder), options.journal) as made:
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
    """One line for each kind of victim and journal, over the latest round of each seed."""
    rounds: dict[tuple[str, int], tuple[str, Round]] = {}
    for line in RESULTS.read_text().splitlines():
        values = json.loads(line)
        at = values.pop("at")
        played = Round(**values)
        rounds[played.journal, played.seed] = (at, played)
    days = sorted({at[:10] for at, _ in rounds.values()})
    lines = [
        "# kill -9",
        "",
        f"`python benchmarks/chaos.py`, for S3 with `--journal s3`; {' and '.join(days)}, {os.cpu_count()} cores.",
        f"Each round: {ROWS} rows, {CONCURRENCY} calls in flight at most, a head and two worker nodes (simulated, each with a",
        "scratch folder of its own that is deleted with it), one SIGKILL at a random moment. Promises: every row is answered, no",
        "answer that counted is lost, calls paid twice are no more than the calls in flight (with the journal on S3:",
        f"plus the answers of the last {WINDOW_S:g} s, whose segment may not have been written), and each of them is listed.",
        "",
        "| journal | killed | rounds | rows answered | counted answers lost | paid twice (most in a round) | of those not listed "
        "| rounds that kept every promise |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for journal, kind in itertools.product(("disk", "s3"), KINDS):
        some = [played for _, played in rounds.values() if (played.journal, played.kind) == (journal, kind)]
        if not some:
            continue
        twice = [played.paid_twice for played in some]
        lines.append(
            f"| {'folder' if journal == 'disk' else 'S3 (moto)'} | {kind} | {len(some)} "
            f"| {sum(p.rows for p in some)} of {ROWS * len(some)} "
            f"| {sum(p.lost for p in some)} | {sum(twice)} ({max(twice)}) "
            f"| {sum(p.unlisted for p in some)} | {sum(p.good for p in some)} of {len(some)} |"
        )
    RESULTS.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
