"""The split: groups stay whole, labels keep their shares, and order does not matter."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tunemill.split.assign import assign_groups


def test_labels_keep_their_share_on_every_side() -> None:
    """Of 100 rows of each label, 20 go to test and 10 to validation."""
    groups = [f"g{i}" for i in range(200)]
    labels = ["positive" if i % 2 else "negative" for i in range(200)]
    sides = assign_groups(groups, labels, test_fraction=0.2, validation_fraction=0.1, seed=0)
    counts = Counter((sides[g], label) for g, label in zip(groups, labels, strict=True))
    assert counts[("test", "positive")] == counts[("test", "negative")] == 20
    assert counts[("validation", "positive")] == counts[("validation", "negative")] == 10


def test_one_huge_group_goes_to_train() -> None:
    """A group larger than what a side still takes never fills the test set by itself."""
    groups = ["huge"] * 80 + [f"g{i}" for i in range(20)]
    sides = assign_groups(groups, [None] * 100, test_fraction=0.1, validation_fraction=0.1, seed=3)
    assert sides["huge"] == "train"
    assert Counter(sides[g] for g in groups)["test"] == 10


def test_the_seed_decides() -> None:
    """Another seed gives another split, the same seed the same."""
    groups = [f"g{i}" for i in range(100)]
    one, same, other = (
        assign_groups(groups, [None] * 100, test_fraction=0.3, validation_fraction=0.0, seed=seed) for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["a", "b", None])), min_size=1, max_size=60), st.integers(0, 5))
def test_the_order_of_rows_does_not_matter(rows: list[tuple[int, str | None]], seed: int) -> None:
    """Shuffled rows give every group the same side, and every group has one."""
    shuffled = random.Random(seed).sample(rows, len(rows))
    answers = [
        assign_groups([str(g) for g, _ in r], [label for _, label in r], test_fraction=0.3, validation_fraction=0.2, seed=seed)
        for r in (rows, shuffled)
    ]
    assert answers[0] == answers[1]
    assert set(answers[0]) == {str(g) for g, _ in rows}
