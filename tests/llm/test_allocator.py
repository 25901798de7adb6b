"""Dealing permits and places between callers and jobs."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tunemill.llm.allocator import CALLER_EXPIRES_S, Allocator, fair_split
from tunemill.llm.limiter import Rates
from tunemill.llm.messages import Ask, Report, Terms
from tunemill.llm.request import LimitHeaders, LimitWindow


def made(rates: Rates = Rates(), concurrency: int = 64, jobs: tuple[str, ...] = ("a",), callers: int = 1) -> Allocator:  # noqa: B008
    """An allocator with callers ``a0, a1, ..., b0, ...``."""
    allocator = Allocator("e", 0.0)
    for job in jobs:
        for number in range(callers):
            allocator.join(job, f"{job}{number}", Terms(rates, concurrency), 0.0)
    return allocator


def ask(caller: str, calls: int) -> Ask:
    """A question for permits for calls of no tokens."""
    return Ask(Report(caller[0], caller, waiting=calls), [(0.0, 0.0)] * calls)


@given(capacity=st.integers(0, 200), wanted=st.lists(st.integers(0, 100), max_size=20))
def test_fair_split_is_max_min_fair(capacity: int, wanted: list[int]) -> None:
    """Nobody gets more than wanted, nothing is left while someone wants more, and no one is poorer than need be."""
    shares = fair_split(capacity, wanted)
    assert all(0 <= share <= want for share, want in zip(shares, wanted, strict=True))
    assert sum(shares) == min(capacity, sum(wanted))
    unmet = [share for share, want in zip(shares, wanted, strict=True) if share < want]
    assert not unmet or max(shares) - min(unmet) <= 1


def test_two_jobs_get_half_each_however_many_callers() -> None:
    """A job with four callers gets no more than a job with one."""
    allocator = made(Rates(requests=6000), jobs=("a",), callers=4)
    allocator.join("b", "b0", Terms(Rates(requests=6000), 64), 0.0)
    got: Counter[str] = Counter()
    now = 0.0
    waiting = {name: allocator.wait(ask(name, 20), now, 99.0) for name in ("a0", "a1", "a2", "a3", "b0")}
    while now < 30:
        done, wake = allocator.deal(now)
        for waiter in done:
            got[waiter.job] += len(waiter.granted)
            waiting[waiter.caller] = allocator.wait(ask(waiter.caller, 20), now, 99.0)
        now = max(now + 0.001, wake or now)
    assert abs(got["a"] - got["b"]) <= 0.02 * sum(got.values())
    assert sum(got.values()) >= 0.98 * 3000


def test_a_job_that_was_idle_does_not_catch_up() -> None:
    """A newcomer shares from now on; it does not get what others had before it came."""
    allocator = made(Rates(requests=600), jobs=("a", "b"))
    now = 0.0
    for _ in range(100):
        waiter = allocator.wait(ask("a0", 1), now, 99.0)
        while not waiter.granted:
            _, wake = allocator.deal(now)
            now = max(now + 1e-4, wake or now) if not waiter.granted else now
    first, second = allocator.wait(ask("a0", 10), now, 99.0), allocator.wait(ask("b0", 10), now, 99.0)
    for _ in range(300):
        now += 0.01
        allocator.deal(now)
        if not allocator._queues["a"] and not allocator._queues["b"]:
            break
    assert len(second.granted) <= len(first.granted) + 11


def test_places_never_exceed_the_concurrency() -> None:
    """Whatever callers were given before, the places that they may use together stay within the limit."""
    allocator = made(concurrency=10, jobs=("a",), callers=1)
    assert allocator.quota("a0", 0.0) == 10
    allocator.join("b", "b0", Terms(Rates(), 10), 0.0)
    allocator.note(Report("b", "b0", waiting=50), 0.1)
    assert allocator.quota("b0", 0.1) == 0
    allocator.note(Report("a", "a0", waiting=50, in_flight=10), 0.2)
    assert allocator.quota("a0", 0.2) == 5
    assert allocator.quota("b0", 0.2) == 0
    allocator.note(Report("a", "a0", waiting=50, in_flight=5), 0.3)
    allocator.quota("a0", 0.3)
    assert allocator.quota("b0", 0.3) == 5


def test_a_silent_caller_loses_its_places() -> None:
    """A dead caller's places go to the living; it has to join again."""
    allocator = made(concurrency=4, jobs=("a", "b"))
    for name in ("a0", "b0"):
        allocator.note(Report(name[0], name, waiting=9), 0.0)
    assert [allocator.quota(name, 0.0) for name in ("a0", "b0")] == [2, 2]
    later = CALLER_EXPIRES_S + 1
    allocator.note(Report("b", "b0", waiting=9, in_flight=2), later)
    allocator.expire(later)
    assert allocator.quota("b0", later) == 4
    assert not allocator.note(Report("a", "a0"), later)


def test_the_strictest_live_job_rules_until_it_leaves() -> None:
    """A stricter job's limits hold for all while it lives."""
    allocator = made(Rates(requests=600), jobs=("a",))
    allocator.join("b", "b0", Terms(Rates(requests=60), 8), 0.0)
    assert allocator.limiter.rates.requests == 60
    assert allocator.concurrency is not None
    assert allocator.concurrency.allowed == 8
    allocator.leave("b0", 1.0)
    assert allocator.limiter.rates.requests == 600


def test_limits_in_headers_are_taken_when_stricter() -> None:
    """A provider that states a lower limit than the configuration is believed."""
    allocator = made(Rates(requests=600))
    allocator.note(Report("a", "a0", headers=LimitHeaders(requests=LimitWindow(limit=100, remaining=50, reset_s=30))), 1.0)
    assert allocator.limiter.rates.requests == 100
    unlimited = made(Rates())
    unlimited.note(Report("a", "a0", headers=LimitHeaders(tokens=LimitWindow(limit=9000))), 1.0)
    assert unlimited.limiter.rates.tokens == 9000


def test_settlements_of_an_earlier_life_are_ignored() -> None:
    """Permits given before a restart do not change the new life's windows."""
    allocator = made(Rates(tokens=100))
    waiter = allocator.wait(Ask(Report("a", "a0"), [(100.0, 0.0)]), 0.0, 9.0)
    allocator.deal(0.0)
    report = Report("a", "a0", cancelled=[(waiter.granted[0], 100.0, 0.0)], epoch="another")
    allocator.note(report, 0.1)
    assert allocator.limiter.ready_at(allocator._queues and waiter.costs[0], 0.1) > 50
    allocator.note(Report("a", "a0", cancelled=[(waiter.granted[0], 100.0, 0.0)], epoch="e"), 0.2)
    assert allocator.limiter.ready_at(waiter.costs[0], 0.2) < 1


def test_an_open_circuit_gives_one_place_to_probe() -> None:
    """When nothing answers, callers stop, then one of them tries."""
    allocator = made(concurrency=10)
    allocator.note(Report("a", "a0", waiting=10, failed=8), 1.0)
    assert allocator.quota("a0", 1.1) == 0
    assert allocator.quota("a0", 2.1) == 1
    allocator.note(Report("a", "a0", waiting=10, answered=1, latency_s=0.1), 2.2)
    assert allocator.quota("a0", 2.3) == 10


def test_a_day_quota_parks_for_all() -> None:
    """After one caller met the day's quota, every caller hears that the model is parked."""
    allocator = made(Rates(requests=600), jobs=("a", "b"))
    allocator.note(Report("a", "a0", day_quota_s=0.0), 1.0)
    grant = allocator.grant("b0", 1.0)
    assert grant.state == "parked"
    assert grant.wait_s > 600


def test_scattered_failures_neither_open_the_circuit_nor_cut_the_concurrency() -> None:
    """Ten failed and three throttled calls among sixty answers of one report are not an outage; without answers they are."""
    allocator = made(concurrency=16)
    for second in range(1, 20):
        throttled = [(0.3, 0.5)] * 3
        allocator.note(
            Report("a", "a0", waiting=99, answered=60, latency_s=0.2, failed=5, overloaded=5, throttled=throttled), second
        )
        assert allocator.quota("a0", second) == 16
    allocator.note(Report("a", "a0", waiting=99, failed=5, overloaded=5), 20.0)
    assert allocator.quota("a0", 20.0) == 0
