"""Retry policy, retry budget, concurrency and circuit: pure state machines."""

from __future__ import annotations

from typing import get_args

import pytest

from tunemill.llm.concurrency import Circuit, Concurrency
from tunemill.llm.providers.failures import failure
from tunemill.llm.request import FailureKind
from tunemill.llm.retry import GiveUp, Retry, RetryBudget, RetryPolicy

POLICY = RetryPolicy()


def decide(
    kind: FailureKind, failures: int = 1, throttles: int = 0, elapsed_s: float = 0.0, hint: float | None = None
) -> Retry | GiveUp:
    """What the policy says with a middling draw."""
    failed = failure(kind, "x", status=None, retry_after_s=hint)
    return POLICY.decide(failed, failures=failures, throttles=throttles, elapsed_s=elapsed_s, draw=0.5)


@pytest.mark.parametrize("kind", get_args(FailureKind))
def test_every_kind_of_failure_ends(kind: FailureKind) -> None:
    """No failure is tried for ever: enough failures and enough time end each kind with a reason."""
    assert isinstance(decide(kind, failures=99, throttles=99, elapsed_s=1e9), GiveUp)


@pytest.mark.parametrize("kind", ["rejected", "too_long", "auth", "not_found"])
def test_what_can_not_succeed_is_not_tried_again(kind: FailureKind) -> None:
    """A wrong request stays wrong."""
    assert isinstance(decide(kind), GiveUp)


def test_throttling_does_not_use_up_attempts() -> None:
    """A call that was throttled a hundred times within minutes is still tried."""
    assert isinstance(decide("throttled", failures=0, throttles=100, elapsed_s=300), Retry)


def test_hints_are_honoured_and_bounded() -> None:
    """Retry-After is waited for, and an absurd one is cut."""
    asked, absurd = decide("throttled", 0, 1, hint=7.0), decide("throttled", 0, 1, hint=1e9)
    assert isinstance(asked, Retry)
    assert 7.0 <= asked.delay_s <= 8.0
    assert isinstance(absurd, Retry)
    assert absurd.delay_s < 400


def test_backoff_grows_and_is_bounded() -> None:
    """Without a hint the wait doubles up to half a minute."""
    delays = [item.delay_s for n in range(1, 6) if isinstance(item := decide("overloaded", failures=n), Retry)]
    assert delays == sorted(delays)
    far = POLICY.decide(failure("throttled", "x", status=429), failures=0, throttles=500, elapsed_s=0, draw=0.999)
    assert isinstance(far, Retry)
    assert far.delay_s <= 30


def test_retries_stay_a_minority_when_everything_fails() -> None:
    """With a failing server retries trickle at one a second beyond their share of new calls."""
    budget, sent, now = RetryBudget(), 0, 0.0
    for _ in range(1000):
        sent += budget.delay_s(now) == 0.0
    assert sent <= 20
    for _ in range(100):
        budget.earn()
    assert sum(budget.delay_s(now) == 0.0 for _ in range(100)) <= 50


def run_rounds(control: Concurrency, rounds: int, capacity: float, base_s: float = 0.1) -> None:
    """A server that serves ``capacity`` calls at full speed and queues the rest."""
    now = 0.0
    for _ in range(rounds):
        latency = base_s * max(1.0, control.allowed / capacity)
        now += latency
        control.answered(now, control.allowed, latency, control.allowed)


def test_concurrency_doubles_to_what_is_allowed() -> None:
    """A quick server is used to the full within a few rounds."""
    control = Concurrency(most=256)
    run_rounds(control, 6, capacity=1e9)
    assert control.allowed == 256


def test_rising_latency_cuts_concurrency_and_it_regrows() -> None:
    """A saturated server settles near twice its capacity at most; when it recovers, calls grow again."""
    control = Concurrency(most=512)
    run_rounds(control, 60, capacity=40)
    assert 30 <= control.allowed <= 100
    run_rounds(control, 100, capacity=1e9)
    assert control.allowed > 200


def test_calls_that_take_longer_for_good_are_not_starved() -> None:
    """When longer prompts make every call three times slower whatever the load, calls stay many."""
    control = Concurrency(most=128)
    run_rounds(control, 10, capacity=1e9, base_s=0.1)
    run_rounds(control, 40, capacity=1e9, base_s=0.3)
    assert control.allowed > 100


def test_throttling_cuts_once_for_calls_sent_before() -> None:
    """Many throttled answers of one burst cut once."""
    control = Concurrency(most=64, limit=64)
    for _ in range(20):
        control.throttled(now=10.0, sent_at=9.5)
    assert control.allowed == 48
    control.throttled(now=11.0, sent_at=10.5)
    assert control.allowed == 36


def test_unused_places_do_not_grow() -> None:
    """Without need the allowance stays where it was."""
    control = Concurrency(most=256)
    for step in range(50):
        control.answered(float(step), 16, 0.1, 3)
    assert control.allowed == 16


def test_circuit_opens_probes_and_closes() -> None:
    """Failures in a row open it for growing times; any answer closes it."""
    circuit = Circuit()
    circuit.succeeded()
    for _ in range(8):
        circuit.failed(0.0)
    assert circuit.open_until == 1.0
    circuit.failed(0.5)
    assert circuit.open_until == 1.0
    circuit.failed(1.5)
    assert circuit.open_until == 3.5
    assert not circuit.dead
    circuit.succeeded()
    assert not circuit.probing


def test_a_server_that_never_answered_is_dead() -> None:
    """Through four openings without any answer the job is given up."""
    circuit, now = Circuit(), 0.0
    for _ in range(40):
        circuit.failed(now)
        now = max(now + 0.01, circuit.open_until)
    assert circuit.dead
