"""The purse: a hard cap over many callers, dead ones included."""

from __future__ import annotations

import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunemill.llm.budget import LedgerService
from tunemill.llm.ledger import Ledger, Tally
from tunemill.llm.purse import PurseKeeper


@given(seed=st.integers(0, 2**20), callers=st.integers(1, 8), deaths=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
async def test_spending_never_passes_the_cap(seed: int, callers: int, deaths: int) -> None:
    """Whatever calls cost (up to their highest price), in whatever order they end, and whoever dies: spent <= cap."""
    draw, cap, spent = random.Random(seed), 1.0, 0.0
    service = LedgerService(cap, 0.0)
    keepers = [PurseKeeper(service, f"c{i}", capped=True) for i in range(callers)]
    flying: list[tuple[PurseKeeper, float]] = []
    for _ in range(300):
        if flying and draw.random() < 0.5:
            keeper, most = flying.pop(draw.randrange(len(flying)))
            real = draw.uniform(0, most)
            keeper.settle(most, real)
            spent += real
        else:
            keeper, most = draw.choice(keepers), draw.uniform(0.001, 0.05)
            if keeper._take(most) or (await keeper._lease(most) == "ok" and keeper._take(most)):
                flying.append((keeper, most))
        if deaths and draw.random() < 0.01:
            deaths -= 1
            dead = keepers.pop(draw.randrange(len(keepers)))
            spent += sum(most for keeper, most in flying if keeper is dead)  # it may have paid for all of them
            flying = [item for item in flying if item[0] is not dead]
            keepers.append(PurseKeeper(service, f"n{deaths}", capped=True))
        assert spent <= cap + 1e-9
        assert spent + sum(most for _, most in flying) <= cap + 1e-9


def test_the_cap_counts_what_earlier_runs_spent() -> None:
    """A cap is for the run folder, not for one attempt."""
    ledger = Ledger(1.0, 0.9)
    assert ledger.lease("a", 0.2, 0.0, 0.0, 0.0).verdict == "over"
    assert ledger.lease("a", 0.05, 0.0, 0.0, 0.0).verdict == "ok"


def test_wait_while_calls_in_flight_may_give_back() -> None:
    """Near the cap a caller waits for the others' calls instead of giving up too early."""
    ledger = Ledger(1.0)
    ledger.lease("a", 0.8, 0.0, 0.0, 0.0)
    assert ledger.lease("b", 0.5, 0.0, 0.0, 1.0).verdict == "wait"
    ledger.report("a", 0.1, 0.0, {}, 2.0)
    assert ledger.lease("b", 0.5, 0.0, 0.0, 3.0).verdict == "ok"


def test_a_dead_callers_lease_counts_as_spent() -> None:
    """The lease of a caller that fell silent never comes back."""
    ledger = Ledger(1.0)
    ledger.lease("a", 0.8, 0.0, 0.0, 0.0)
    assert ledger.lease("b", 0.5, 0.0, 0.0, 100.0).verdict == "over"


def test_a_restarted_ledger_remembers_every_lease() -> None:
    """What was leased before the kill is still held, and every block counts as begun."""
    kept: list[bytes] = []
    ledger = Ledger(1.0)
    ledger.lease("a", 0.7, 0.0, 0.0, 0.0)
    kept.append(pickle.dumps(ledger.snapshot()))
    again = Ledger.restored(pickle.loads(kept[0]), 5.0)
    assert again.left_usd == pytest.approx(0.3)
    assert again.begin("block")
    assert again.lease("a", 0.1, 0.0, 0.2, 6.0).verdict == "ok"
    assert again.left_usd == pytest.approx(0.7)


async def test_leases_are_saved_before_they_are_given() -> None:
    """The snapshot with the lease is written before the caller hears of it."""
    saved: list[dict[str, object]] = []
    service = LedgerService(1.0, 0.0, save=saved.append)
    purse = await service.lease("a", 0.25, 0.0, 0.0)
    assert saved[-1]["holders"] == {"a": (0.0, purse.leased_usd)}


def test_a_block_is_begun_once() -> None:
    """The second time a block comes up, its worker may have died: look the journal up again."""
    ledger = Ledger(None)
    assert [ledger.begin("x"), ledger.begin("y"), ledger.begin("x")] == [False, False, True]


def test_totals_add_up_over_callers() -> None:
    """Counts of all callers, dead ones included."""
    ledger = Ledger(None)
    for caller in ("a", "b", "a"):
        ledger.report(caller, 0.0, None, {"m": Tally(calls=2, cost_usd=0.5)}, 0.0)
    assert ledger.totals()["m"].calls == 4
    assert ledger.totals()["m"].cost_usd == 1.0
