"""What callers and their budget say to each other; plain values that cross processes."""

from __future__ import annotations

import dataclasses
from typing import Literal

from tunemill.llm.limiter import Rates
from tunemill.llm.request import LimitHeaders

__all__ = ["Ask", "Grant", "Report", "State", "Terms"]

State = Literal["open", "parked", "dead", "unknown"]
"""parked: the quota of the day is used up; dead: the server never answered; unknown: the caller has to join (again)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Terms:
    """What a job states about the account."""

    rates: Rates
    concurrency: int


@dataclasses.dataclass(slots=True)
class Report:
    """What happened at one caller since its last report. Times are ages in seconds, so clocks need not agree."""

    job: str
    caller: str
    waiting: int = 0
    in_flight: int = 0
    peak: int = 0
    answered: int = 0
    latency_s: float = 0.0
    """Mean latency of the answered calls."""
    settled: list[tuple[float, float, float, float, float]] = dataclasses.field(default_factory=list)
    """Permit time, reserved input and output, real input and output, for calls that took other than reserved."""
    cancelled: list[tuple[float, float, float]] = dataclasses.field(default_factory=list)
    """Permit time, reserved input and output, for permits that were not used."""
    throttled: list[tuple[float, float | None]] = dataclasses.field(default_factory=list)
    """Age of the call and the provider's hint, for each throttled call."""
    failed: int = 0
    """Calls that got no response."""
    overloaded: int = 0
    """Calls that the server answered with an error of its own (5xx)."""
    day_quota_s: float | None = None
    headers: LimitHeaders | None = None
    epoch: str = ""
    """Of the permits in this report; those of an earlier life of the budget are not settled."""


@dataclasses.dataclass(slots=True)
class Ask:
    """A report and the (input, output) tokens of the calls that wait, the oldest first."""

    report: Report
    costs: list[tuple[float, float]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Grant:
    """What a caller may do now."""

    state: State
    epoch: str = ""
    quota: int = 0
    limited: bool = False
    """True: each call needs a permit; False: the quota alone rules."""
    permits: tuple[tuple[float, float], ...] = ()
    """(delay in seconds from now, permit time) for the first calls that were asked for."""
    held_s: float = 0.0
    """How long the question was kept waiting."""
    wait_s: float = 0.0
    """How long nothing will be sent (parked)."""
