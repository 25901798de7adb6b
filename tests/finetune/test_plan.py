"""Which rows train when and where."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.tiny import rows
from tunemill.finetune.batches import pieces_of
from tunemill.finetune.plan import StepPlan, share_out, split_pieces

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=60)
LAYOUTS = st.sampled_from(["packed", "bucketed", "padded"])


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 5))
def test_an_epoch_sees_every_row_once(count: int, batch: int, seed: int) -> None:
    """No row is skipped or seen twice in an epoch, for any batch size, also when the rows do not divide."""
    plan = StepPlan(rows=count, batch_size=batch, epochs=3, seed=seed)
    for epoch in range(3):
        first = epoch * plan.steps_per_epoch
        seen = [row for step in range(first, first + plan.steps_per_epoch) for row in plan.rows_of(step)]
        assert sorted(seen) == list(range(count))


def test_epochs_have_different_orders_and_seeds_too() -> None:
    """The order changes with the epoch and with the seed, and is the same when both are."""
    plan = StepPlan(rows=50, batch_size=50, epochs=2, seed=1)
    other = StepPlan(rows=50, batch_size=50, epochs=2, seed=2)
    assert plan.rows_of(0) != plan.rows_of(1)
    assert plan.rows_of(0) != other.rows_of(0)
    assert plan.rows_of(0) == StepPlan(rows=50, batch_size=50, epochs=2, seed=1).rows_of(0)


@settings(deadline=None)
@given(LENGTHS, LAYOUTS, st.integers(1, 6), st.integers(16, 400))
def test_pieces_hold_every_row_once_within_the_limit(lengths: list[int], layout: str, accumulation: int, limit: int) -> None:
    """Cutting rows into passes loses none, and only a single longer row may exceed the limit."""
    sizes = np.asarray(lengths)
    pieces = split_pieces(range(len(lengths)), sizes, layout=layout, accumulation=accumulation, micro_tokens=limit)  # type: ignore[arg-type]
    assert sorted(row for piece in pieces for row in piece) == list(range(len(lengths)))
    for piece in pieces:
        width = sum(lengths[r] for r in piece) if layout == "packed" else len(piece) * max(lengths[r] for r in piece)
        assert len(piece) == 1 or width <= limit or accumulation > 1
    assert len(pieces) >= min(accumulation, len(lengths)) or layout == "padded"


@given(LENGTHS, st.integers(1, 8))
def test_workers_share_rows_without_overlap_and_evenly(lengths: list[int], workers: int) -> None:
    """Every row goes to one worker, and no worker has more than another by more than the longest row."""
    shares = share_out(range(len(lengths)), np.asarray(lengths), workers)
    assert sorted(row for share in shares for row in share) == list(range(len(lengths)))
    loads = [sum(lengths[row] for row in share) for share in shares]
    assert max(loads) - min(loads) <= max(lengths)


def test_all_workers_make_the_same_number_of_passes() -> None:
    """A worker with fewer rows gets empty passes, since sharded weights are gathered in step."""
    data = rows(11)
    cut = pieces_of(range(11), data, layout="packed", workers=4, accumulation=1, micro_tokens=64)
    assert len({len(pieces) for pieces in cut}) == 1
    assert sorted(row for pieces in cut for piece in pieces for row in piece) == list(range(11))


def test_bucketed_wastes_less_than_padded() -> None:
    """Buckets of like lengths hold fewer padded tokens than one padded block."""
    lengths = np.asarray([20, 30, 25, 300, 310, 28, 290, 22])
    bucketed = split_pieces(range(8), lengths, layout="bucketed", accumulation=1, micro_tokens=10_000)
    padded = split_pieces(range(8), lengths, layout="padded", accumulation=1, micro_tokens=10_000)
    cost = [sum(len(piece) * max(lengths[piece]) for piece in pieces) for pieces in (bucketed, padded)]
    assert cost[0] < 0.6 * cost[1]
