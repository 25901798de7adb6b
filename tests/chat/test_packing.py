"""Packing: every example once, never over capacity, close to the fewest packs, the same each time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunemill.chat.packing import pack

CASES = st.integers(1, 60).flatmap(lambda capacity: st.tuples(st.lists(st.integers(1, capacity), max_size=60), st.just(capacity)))
SETTINGS = settings(max_examples=200, deadline=None, derandomize=True)


def best_fit_by_hand(lengths: list[int], capacity: int) -> list[list[int]]:
    """The textbook rule in O(n^2): the fullest pack that still has room."""
    packs: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        rooms = [(capacity - sum(lengths[i] for i in p), p) for p in packs]
        fitting = [room for room in rooms if room[0] >= lengths[index]]
        if fitting:
            min(fitting, key=lambda room: room[0])[1].append(index)
        else:
            packs.append([index])
    return packs


def fewest_packs(lengths: list[int], capacity: int) -> int:
    """A number of packs that no packing can go below: all tokens, or all examples longer than half a pack."""
    return max(-(-sum(lengths) // capacity), sum(length > capacity / 2 for length in lengths))


@SETTINGS
@given(case=CASES)
def test_every_example_once_and_within_capacity(case: tuple[list[int], int]) -> None:
    """Nothing is lost, doubled or cut."""
    lengths, capacity = case
    packs = pack(lengths, capacity)
    assert sorted(index for one in packs for index in one) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in one) <= capacity for one in packs)


@SETTINGS
@given(case=CASES)
def test_packs_are_as_full_as_the_textbook_rule_makes_them(case: tuple[list[int], int]) -> None:
    """As many packs as best-fit decreasing written out by hand, and near the lower bound."""
    lengths, capacity = case
    packs = pack(lengths, capacity)
    assert len(packs) == len(best_fit_by_hand(lengths, capacity))
    assert fewest_packs(lengths, capacity) <= len(packs) <= 1.5 * fewest_packs(lengths, capacity) + 1


def test_realistic_lengths_waste_next_to_nothing() -> None:
    """Dialogues of lognormal length fill packs of 4,096 tokens to more than 99.5 %."""
    draws = np.random.default_rng(0).lognormal(5.5, 0.9, 5000)
    lengths = [int(length) for length in np.clip(draws, 4, 4096)]
    packs = pack(lengths, 4096)
    assert sum(lengths) / (len(packs) * 4096) > 0.995
    assert packs == pack(lengths, 4096)


@pytest.mark.parametrize("lengths", [[0], [9], [3, -1]])
def test_lengths_that_cannot_be_packed_are_named(lengths: list[int]) -> None:
    """An empty or too long example is an error, not a pack."""
    with pytest.raises(ValueError, match="should be 1 to 8"):
        pack(lengths, 8)
