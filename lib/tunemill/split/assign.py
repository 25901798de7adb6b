"""Which group goes where: a pure decision from group sizes, labels and a seed."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

__all__ = ["SPLITS", "assign_groups"]

SPLITS = ("train", "validation", "test")


def assign_groups(
    groups: Sequence[str], labels: Sequence[str | None], *, test_fraction: float, validation_fraction: float, seed: int
) -> dict[str, str]:
    """Return the side of each group.

    ``groups`` and ``labels`` have one entry per row. A group counts under its most frequent label. In
    each label, groups are taken in the order of a seeded hash: to test until its share of the rows is
    full, then to validation, the rest to train. A group that would overfill a side by more than it
    leaves empty goes on to the next, so one huge group never becomes the whole test set. The answer
    does not depend on the order of the rows.
    """
    sizes = Counter(groups)
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for group, label in zip(groups, labels, strict=True):
        votes[group]["" if label is None else label] += 1
    strata: dict[str, list[str]] = defaultdict(list)
    for group, counts in votes.items():
        strata[min(counts, key=lambda label: (-counts[label], label))].append(group)
    sides: dict[str, str] = {}
    for members in strata.values():
        ordered = sorted(members, key=lambda group: _hash(seed, group))
        rows = sum(sizes[group] for group in ordered)
        room = {"test": rows * test_fraction, "validation": rows * validation_fraction}
        for group in ordered:
            side = next((name for name, left in room.items() if left - sizes[group] / 2 >= 0), "train")
            sides[group] = side
            if side != "train":
                room[side] -= sizes[group]
    return sides


def _hash(seed: int, group: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=16).digest()
