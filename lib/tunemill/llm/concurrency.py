"""How many calls may be in flight: a pure state machine that feels its way to what the server bears.

Rounds of as many answers as calls may be in flight: a round that used its allowance and stayed quick lets
the next one grow (doubling until the first cut, then by 5 %), a round that was throttled, or twice as
slow as the quickest of late, cuts it. A local server under load shows as latency, never as a 429.
"""

from __future__ import annotations

import dataclasses

__all__ = ["Circuit", "Concurrency"]

_START = 16.0


@dataclasses.dataclass(slots=True)
class Concurrency:
    """Calls in flight, additive increase and multiplicative decrease, between 1 and ``most``."""

    most: int
    limit: float = 0.0
    tolerance: float = 2.0
    """A round this many times slower than the base latency is a sign of overload."""
    _base_s: float = float("inf")
    _sum_s: float = 0.0
    _answers: int = 0
    _peak: int = 0
    _last_cut: float = float("-inf")
    _slow_start: bool = True
    _slow_rounds: int = 0
    _slow_from_s: float = 0.0

    def __post_init__(self) -> None:
        """Begin low: doubling gets anywhere within a few rounds."""
        self.limit = self.limit or min(float(self.most), _START)

    @property
    def allowed(self) -> int:
        """Calls that may be in flight now."""
        return max(1, min(self.most, int(self.limit)))

    def set_most(self, most: int) -> None:
        """Change the upper bound."""
        self.most = most

    def answered(self, now: float, count: int, mean_latency_s: float, in_flight: int) -> None:
        """Note ``count`` good answers and the calls that were in flight when they came."""
        self._sum_s += mean_latency_s * count
        self._answers += count
        self._peak = max(self._peak, in_flight)
        if self._answers >= max(self.allowed, 4):
            self._end_round(now)

    def throttled(self, now: float, sent_at: float) -> None:
        """Cut by a quarter, once for all the calls that were sent before the cut."""
        if sent_at > self._last_cut:
            self._cut(now, 0.75)

    def _end_round(self, now: float) -> None:
        round_s = self._sum_s / self._answers
        peak, self._sum_s, self._answers, self._peak = self._peak, 0.0, 0, 0
        self._base_s = min(round_s, self._base_s * 1.001)
        if round_s > self.tolerance * self._base_s and peak > 4:
            self._slow_round(now, round_s)
            return
        self._slow_rounds = 0
        if peak >= 0.8 * self.allowed:
            grown = self.limit * 2 if self._slow_start else self.limit + max(1.0, 0.05 * self.limit)
            self.limit = min(float(self.most), grown)

    def _slow_round(self, now: float, round_s: float) -> None:
        self._slow_rounds += 1
        if self._slow_rounds == 1:
            self._slow_from_s = round_s
        if self._slow_rounds == 5 and round_s > 0.85 * self._slow_from_s:
            # four cuts made nothing quicker: the calls themselves take longer now
            self._base_s, self._slow_rounds = round_s, 0
            return
        self._cut(now, 0.9)

    def _cut(self, now: float, factor: float) -> None:
        self._slow_start = False
        self._last_cut = now
        self.limit = max(1.0, self.limit * factor)


@dataclasses.dataclass(slots=True)
class Circuit:
    """Stops calling a server that does not answer at all, and probes it with one call at a time.

    It opens after ``threshold`` failures in a row (connections refused, overloads), for 1 s, doubling up
    to ``longest_s``. ``dead`` says that nothing ever worked through several openings: give up the job.
    """

    threshold: int = 8
    longest_s: float = 30.0
    patience: int = 4
    open_until: float = float("-inf")
    _failures: int = 0
    _openings: int = 0
    _worked: bool = False

    def succeeded(self) -> None:
        """Any response at all closes the circuit."""
        self._failures = self._openings = 0
        self.open_until = float("-inf")
        self._worked = True

    def failed(self, now: float, *, answered: bool = False) -> None:
        """Note a call that got no response, or only an error of the server's (``answered``)."""
        self._worked = self._worked or answered
        if now < self.open_until:
            return
        self._failures += 1
        if self._failures >= (self.threshold if self._openings == 0 else 1):
            self.open_until = now + min(2.0**self._openings, self.longest_s)
            self._openings += 1
            self._failures = 0

    @property
    def dead(self) -> bool:
        """Nothing ever worked, through ``patience`` openings."""
        return not self._worked and self._openings >= self.patience

    @property
    def probing(self) -> bool:
        """After an opening, until something works: one call at a time."""
        return self._openings > 0
