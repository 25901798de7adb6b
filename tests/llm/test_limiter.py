"""The limiter against an independent count of every window."""

from __future__ import annotations

import random
from bisect import bisect_right

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunemill.llm.limiter import Cooldown, Cost, Limiter, Rates, strictest


def most_in_any_window(events: list[tuple[float, float]], length_s: float) -> float:
    """The largest sum of amounts that arrived within any half-open stretch of ``length_s``."""
    ordered = sorted(events)
    times = [at for at, _ in ordered]
    sums = [0.0]
    for _, amount in ordered:
        sums.append(sums[-1] + amount)
    return max((sums[i + 1] - sums[bisect_right(times, at - length_s)] for i, at in enumerate(times)), default=0.0)


def saturate(limiter: Limiter, costs: random.Random, until: float, mean_tokens: float) -> list[tuple[float, Cost]]:
    """Send whatever is allowed as soon as it is allowed."""
    now, sent = 0.0, []
    while True:
        cost = Cost(costs.uniform(0.5, 1.5) * mean_tokens, 0.0)
        now = limiter.ready_at(cost, now)
        if now > until:
            return sent
        limiter.take(cost, now)
        sent.append((now, cost))


@given(rpm=st.integers(3, 6000), seed=st.integers(0, 2**16), stalls=st.booleans())
@settings(max_examples=40, deadline=None)
def test_no_window_holds_more_requests_than_the_limit(rpm: int, seed: int, stalls: bool) -> None:
    """However callers stall and the network delays, no provider window sees more than the limit."""
    draw, limiter, now, arrivals = random.Random(seed), Limiter(Rates(requests=rpm), 0.0), 0.0, []
    while now < 150:
        now = limiter.ready_at(Cost(), now)
        limiter.take(Cost(), now)
        arrivals.append((now + draw.uniform(0, 0.29), 1.0))
        if stalls and draw.random() < 0.01:
            now += draw.uniform(0, 20)
    assert most_in_any_window(arrivals, 60.0) <= rpm


@given(tpm=st.integers(2_000, 200_000), seed=st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_no_window_holds_more_tokens_than_the_limit(tpm: int, seed: int) -> None:
    """Calls of uneven size stay within the tokens of every window."""
    sent = saturate(Limiter(Rates(tokens=tpm), 0.0), random.Random(seed), 150.0, tpm / 200)
    assert most_in_any_window([(at, cost.input_tokens) for at, cost in sent], 60.0) <= tpm * (1 + 1e-9)


@pytest.mark.parametrize("rpm", [60, 600, 6000])
def test_saturated_requests_use_99_percent(rpm: int) -> None:
    """A saturated limiter gives at least 99 % of the limit after the first ten seconds."""
    sent = saturate(Limiter(Rates(requests=rpm), 0.0), random.Random(0), 190.0, 1.0)
    steady = sum(1 for at, _ in sent if 10 < at <= 190)
    assert steady >= 0.99 * rpm * 3 - 1


def test_saturated_tokens_use_99_percent() -> None:
    """When tokens bind, at least 99 % of them are used."""
    sent = saturate(Limiter(Rates(requests=6000, tokens=60_000), 0.0), random.Random(0), 190.0, 100.0)
    assert sum(cost.input_tokens for at, cost in sent if 10 < at <= 190) >= 0.99 * 180_000


def test_the_first_minute_is_not_a_full_bucket() -> None:
    """The first second brings a second's worth, not a minute's."""
    sent = saturate(Limiter(Rates(requests=600), 0.0), random.Random(0), 1.0, 1.0)
    assert len(sent) <= 12


def test_a_short_stall_is_caught_up() -> None:
    """Half a second without callers costs nothing."""
    limiter, now, sent, stalled = Limiter(Rates(requests=600), 0.0), 0.0, 0, False
    while now < 60:
        now = limiter.ready_at(Cost(), now)
        limiter.take(Cost(), now)
        sent += 1
        if now > 30 and not stalled:
            now, stalled = now + 0.5, True
    assert sent >= 595


def test_strict_pace_holds_every_second() -> None:
    """With a pace of one second (Azure), no second holds more than its share."""
    sent = saturate(Limiter(Rates(requests=600, pace_s=1.0), 0.0), random.Random(0), 60.0, 1.0)
    assert most_in_any_window([(at, 1.0) for at, _ in sent], 1.0) <= 10
    assert len(sent) >= 590


def test_settling_gives_unused_tokens_back() -> None:
    """Reserved output that was not used becomes free for other calls."""
    limiter, now, sent = Limiter(Rates(tokens=10_000), 0.0), 0.0, 0
    reserved, real = Cost(10, 190), Cost(10, 40)
    while now < 120:
        now = limiter.ready_at(reserved, now)
        limiter.take(reserved, now)
        limiter.settle(now, reserved, real)
        sent += 1
    assert sent * 50 >= 0.97 * 20_000


def test_a_cancelled_call_does_not_count() -> None:
    """A reservation that was never sent leaves no trace in the window."""
    limiter = Limiter(Rates(requests=5), 0.0)
    for _ in range(50):
        at = limiter.ready_at(Cost(), 1.0)
        limiter.take(Cost(), at)
        limiter.cancel(at, Cost())
    assert limiter.ready_at(Cost(), 2.0) == pytest.approx(2.0)


def test_a_call_larger_than_the_limit_still_goes_through() -> None:
    """A call that alone exceeds the limit waits for an empty window instead of waiting for ever."""
    limiter = Limiter(Rates(tokens=100), 0.0)
    limiter.take(Cost(50), 0.0)
    at = limiter.ready_at(Cost(500), 0.0)
    assert 59 < at < 65


def test_strictest_live_limit_wins() -> None:
    """Of several jobs' limits the lowest of each dimension holds, compared per second."""
    merged = strictest([Rates(requests=600, tokens=10_000), Rates(requests=5, window_s=1.0), Rates()])
    assert (merged.requests, merged.tokens, merged.window_s) == (300, 10_000, 60.0)


def test_lower_limits_count_what_was_sent_before() -> None:
    """Lowering a limit in flight keeps the log, so that the new limit holds at once."""
    limiter, now = Limiter(Rates(requests=600), 0.0), 0.0
    for _ in range(300):
        now = limiter.ready_at(Cost(), now)
        limiter.take(Cost(), now)
    limiter.set_rates(Rates(requests=100), now)
    assert limiter.ready_at(Cost(), now) > 50


def test_late_echoes_do_not_extend_a_cooldown() -> None:
    """Hundreds of throttled answers to calls sent before the pause leave its end where it was."""
    cooldown = Cooldown()
    while not cooldown.throttled(10.0, 9.0, 5.0):
        pass
    for late in range(500):
        assert not cooldown.throttled(10.0 + late / 100, 9.5, 60.0)
    assert cooldown.until == 15.0


def test_an_absurd_retry_after_is_bounded() -> None:
    """A Retry-After of years pauses for minutes."""
    cooldown = Cooldown()
    while not cooldown.throttled(0.0, 0.0, 1e9):
        pass
    assert cooldown.until <= 300.0


def test_one_stray_throttle_does_not_stop_the_others() -> None:
    """A single 429 among good answers pauses only its own call."""
    cooldown = Cooldown()
    for _ in range(30):
        cooldown.answered()
    assert not cooldown.throttled(1.0, 0.5, 20.0)


def test_throttling_without_a_hint_slows_the_pace_and_recovers() -> None:
    """Where a provider gives no hint the pace is cut, and comes back with good answers."""
    limiter = Limiter(Rates(requests=600), 0.0)
    while not limiter.throttled(1.0, 1.0, None):
        pass
    slow = saturate(limiter, random.Random(0), 31.0, 1.0)
    assert 0.5 * 300 < len(slow) < 0.75 * 300
    for _ in range(200):
        limiter.answered(31.0)
    now, sent = 31.0, 0
    while now < 51:
        now = limiter.ready_at(Cost(), now)
        limiter.take(Cost(), now)
        sent += 1
    assert sent >= 195


def test_after_a_restart_the_window_counts_as_used() -> None:
    """A limiter without memory goes on at the pace, so that old and new calls fit into one window."""
    before = [(at - 60.0, 1.0) for at, _ in saturate(Limiter(Rates(requests=600), 0.0), random.Random(0), 60.0, 1.0)]
    limiter = Limiter(Rates(requests=600), 0.0)
    limiter.assume_used(0.0)
    after = [(at, 1.0) for at, _ in saturate(limiter, random.Random(0), 60.0, 1.0)]
    assert most_in_any_window(before + after, 60.0) <= 600
    assert len(after) >= 590


def test_a_parked_model_sends_nothing() -> None:
    """Parking on a day's quota holds until its end."""
    limiter = Limiter(Rates(), 0.0)
    limiter.park(3600.0)
    assert limiter.ready_at(Cost(), 1.0) == 3600.0


def test_what_was_reserved_too_much_comes_back_in_whatever_order_permits_were_dealt() -> None:
    """A permit dealt for an earlier time than the one before it (the pace had just been given back) is settled as well."""
    limiter = Limiter(Rates(tokens=1000), 0.0)
    reserved, real = Cost(0.0, 100.0), Cost(0.0, 10.0)
    for at in (5.0, 4.9, 5.0, 4.8):
        limiter.take(reserved, at)
    for at in (4.8, 5.0, 4.9, 5.0):
        limiter.settle(at, reserved, real)
    assert limiter.used(5.1)["tokens"] == pytest.approx(40.0)
    limiter.take(reserved, 100.0)
    limiter.settle(5.0, reserved, real)
    assert limiter.used(100.1)["tokens"] == pytest.approx(100.0)
