"""How fast one account may be called: a pure state machine on an injected clock.

It owns no tasks, clients or clocks: every method takes ``now`` (seconds of one monotonic clock). Each
limit is kept twice over. A sliding window of what was sent makes sure that no stretch of the window's
length ever holds more than the limit; a pace (GCRA, ITU-T I.371 annex A) spreads the calls evenly, so
that a start, a restart or a second job never sends a minute's worth at once.

A provider counts when a request *arrives*. The window here is longer than the provider's by a guard of
0.5 %: calls that the network delays by up to the guard still stay within the limit.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections import deque
from collections.abc import Iterable
from typing import Literal

from tunemill.llm.config import Limits

__all__ = ["Cooldown", "Cost", "Limiter", "Rates", "SlidingWindow", "strictest"]

GUARD = 0.005
_BUCKETS = 2000
_NEVER = float("-inf")

Dimension = Literal["requests", "tokens", "input_tokens", "output_tokens"]


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """What one call takes from the limits, in tokens; every call is one request."""

    input_tokens: float = 0.0
    output_tokens: float = 0.0
    """Already weighted as the provider counts output."""

    def of(self, dimension: Dimension) -> float:
        """The amount of one dimension."""
        if dimension == "requests":
            return 1.0
        if dimension == "tokens":
            return self.input_tokens + self.output_tokens
        return self.input_tokens if dimension == "input_tokens" else self.output_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """Limits per window as the limiter needs them; None is unlimited."""

    requests: float | None = None
    tokens: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    window_s: float = 60.0
    pace_s: float | None = None
    """Also hold the limits in every stretch of this length (Azure counts over 1 to 10 s); None: even pace, small bursts."""

    @classmethod
    def of(cls, limits: Limits, *, pace_s: float | None = None) -> Rates:
        """The rates of a model's configured limits."""
        return cls(
            requests=limits.rpm,
            tokens=limits.tpm,
            input_tokens=limits.input_tpm,
            output_tokens=limits.output_tpm,
            window_s=limits.window_s,
            pace_s=pace_s,
        )


def strictest(rates: Iterable[Rates]) -> Rates:
    """The lowest of each limit, per second, in the longest window that anyone states."""
    known = list(rates)
    if not known:
        return Rates()
    window_s = max(rate.window_s for rate in known)
    lowest: dict[str, float | None] = {}
    for name in ("requests", "tokens", "input_tokens", "output_tokens"):
        stated = [value * window_s / rate.window_s for rate in known if (value := getattr(rate, name)) is not None]
        lowest[name] = min(stated) if stated else None
    paces = [rate.pace_s for rate in known if rate.pace_s is not None]
    return Rates(**lowest, window_s=window_s, pace_s=min(paces) if paces else None)


class SlidingWindow:
    """At most ``limit`` in any stretch of ``length_s`` seconds, evenly paced.

    ``burst_s`` is how much lost time may be caught up: a caller that stalls for half a second does not
    lose that half second for good. Sent amounts are kept in 2,000 buckets per window, rounded to the
    late side, so memory does not grow with the rate.
    """

    def __init__(self, limit: float, length_s: float, burst_s: float, now: float) -> None:
        self.limit = limit
        self.length_s = length_s
        self.burst_s = burst_s
        self.slowdown = 1.0
        self._width = length_s / _BUCKETS
        self._sums: dict[int, float] = {}
        self._order: deque[int] = deque()
        self._total = 0.0
        self._next = now + burst_s
        self._now = now

    @property
    def interval_s(self) -> float:
        """Seconds of the pace that one unit takes."""
        return (self.length_s + self._width) / self.limit * self.slowdown

    def ready_at(self, amount: float, now: float) -> float:
        """The earliest time, from ``now`` on, at which ``amount`` may be sent."""
        amount = min(amount, self.limit)
        self._expire(now)
        free_at = now
        excess = self._total + amount - self.limit
        if excess > 1e-9 * self.limit:
            for bucket in self._order:
                excess -= self._sums[bucket]
                if excess <= 1e-9 * self.limit:
                    free_at = (bucket + 1) * self._width + self.length_s
                    break
        return max(now, free_at, self._next - self.burst_s)

    def take(self, amount: float, at: float) -> None:
        """Count ``amount`` as sent at ``at`` (which may lie a little ahead)."""
        amount = min(amount, self.limit)
        self._add(amount, at)
        self._next = max(self._next, at) + amount * self.interval_s

    def adjust(self, delta: float, at: float) -> None:
        """Correct what was taken at ``at`` by ``delta`` once the real amount is known, unless it has left the window.

        It stands in the first bucket from ``at`` on: an earlier time than the one before is counted with that.
        """
        place = bisect.bisect_left(self._order, int(at // self._width))
        if place == len(self._order) or self._left(int(at // self._width), self._now):
            return
        bucket = self._order[place]
        delta = max(delta, -self._sums[bucket])
        self._sums[bucket] += delta
        self._total += delta
        self._next += delta * self.interval_s

    def hold_until(self, at: float) -> None:
        """Send nothing before ``at``, and catch nothing up then."""
        self._next = max(self._next, at + self.burst_s)

    def assume_used(self, now: float) -> None:
        """Act as if the whole window had been used evenly until ``now`` (after a loss of memory)."""
        self._sums.clear()
        self._order.clear()
        self._total = 0.0
        steps = 200
        for step in range(steps):
            self._add(self.limit / steps, now - self.length_s * (1 - (step + 1) / steps))
        self._next = now + self.burst_s + self.interval_s

    def used(self, now: float) -> float:
        """What counts in the window at ``now``."""
        self._expire(now)
        return self._total

    def _add(self, amount: float, at: float) -> None:
        bucket = int(at // self._width)
        if self._order and bucket < self._order[-1]:
            bucket = self._order[-1]
        if bucket not in self._sums:
            self._sums[bucket] = 0.0
            self._order.append(bucket)
        self._sums[bucket] += amount
        self._total += amount

    def _left(self, bucket: int, now: float) -> bool:
        """True when a bucket has left the window."""
        return (bucket + 1) * self._width + self.length_s <= now

    def _expire(self, now: float) -> None:
        self._now = now
        while self._order and self._left(self._order[0], now):
            self._total -= self._sums.pop(self._order.popleft())
        if not self._order:
            self._total = 0.0


class Cooldown:
    """A pause after throttling that answers to older calls can not extend.

    A single throttled call only waits for itself. When more than a tenth of the latest calls were
    throttled, everything pauses for as long as the provider asks (at most ``longest_s``), or 0.5 s,
    doubling up to 30 s, where it does not say. Only calls sent after a pause began can start another.
    """

    def __init__(self, longest_s: float = 300.0) -> None:
        self.longest_s = longest_s
        self.until = _NEVER
        self._began = _NEVER
        self._fraction = 0.0
        self._streak = 0

    def answered(self) -> None:
        """Note a call that was not throttled."""
        self._fraction *= 0.95
        self._streak = 0 if self._fraction < 0.02 else self._streak

    def throttled(self, now: float, sent_at: float, retry_after_s: float | None) -> bool:
        """Note a throttled call; True when a new pause begins."""
        self._fraction = 0.95 * self._fraction + 0.05
        if sent_at < max(self._began, self.until) or self._fraction < 0.1:
            return False
        wait_s = retry_after_s if retry_after_s is not None else 0.5 * 2**self._streak
        self._streak = min(self._streak + 1, 6)
        self._began = now
        self.until = now + min(max(wait_s, 0.0), self.longest_s if retry_after_s is not None else 30.0)
        return True


class Limiter:
    """All the rates of one account, region and model."""

    def __init__(self, rates: Rates, now: float) -> None:
        self._windows: dict[tuple[Dimension, float], SlidingWindow] = {}
        self.cooldown = Cooldown()
        self.parked_until = _NEVER
        self._slow_until = _NEVER
        self.rates = Rates()
        self.set_rates(rates, now)

    @property
    def limited(self) -> bool:
        """True where at least one rate is limited."""
        return bool(self._windows)

    def set_rates(self, rates: Rates, now: float) -> None:
        """Change the limits; what was sent before goes on counting."""
        if rates == self.rates and self._windows:
            return
        kept = self._windows
        self._windows = {}
        for key, limit, length_s, burst_s in _windows_of(rates):
            window = kept.get(key)
            if window is None or window.length_s != length_s * (1 + GUARD):
                window = SlidingWindow(limit, length_s * (1 + GUARD), burst_s, now)
            window.limit = limit
            self._windows[key] = window
        self.rates = rates

    def ready_at(self, cost: Cost, now: float) -> float:
        """The earliest time at which a call of this cost may be sent."""
        at = max(now, self.cooldown.until, self.parked_until)
        for (dimension, _), window in self._windows.items():
            at = max(at, window.ready_at(cost.of(dimension), now))
        return at

    def take(self, cost: Cost, at: float) -> None:
        """Reserve a call of this cost at ``at``."""
        for (dimension, _), window in self._windows.items():
            window.take(cost.of(dimension), at)

    def settle(self, at: float, reserved: Cost, real: Cost) -> None:
        """Replace the reservation made for ``at`` by what the call really took."""
        for (dimension, _), window in self._windows.items():
            delta = real.of(dimension) - reserved.of(dimension)
            if delta:
                window.adjust(delta, at)

    def cancel(self, at: float, reserved: Cost) -> None:
        """Give back a reservation that was never sent."""
        for (dimension, _), window in self._windows.items():
            window.adjust(-reserved.of(dimension), at)

    def used(self, now: float) -> dict[Dimension, float]:
        """What counts in each dimension's longest window at ``now``."""
        return {name: window.used(now) for (name, length_s), window in self._windows.items() if length_s == self.rates.window_s}

    def answered(self, now: float) -> None:
        """Note a call that was not throttled; a slowed pace recovers by 1 % of the limit."""
        self.cooldown.answered()
        for window in self._windows.values():
            if window.slowdown > 1.0:
                window.slowdown = max(1.0, 1.0 / (1.0 / window.slowdown + 0.01))

    def throttled(self, now: float, sent_at: float, retry_after_s: float | None) -> bool:
        """Note a throttled call; True when everything pauses.

        Where the provider gives no hint, others may be using the account: the pace is cut to 70 % and recovers.
        """
        paused = self.cooldown.throttled(now, sent_at, retry_after_s)
        if paused:
            for window in self._windows.values():
                window.hold_until(self.cooldown.until)
                if retry_after_s is None:
                    window.slowdown = min(window.slowdown / 0.7, 10.0)
        return paused

    def park(self, until: float) -> None:
        """Send nothing before ``until``: the quota of the day is used up."""
        self.parked_until = max(self.parked_until, until)

    def hold(self, dimension: Dimension, until: float) -> None:
        """Send nothing that takes from ``dimension`` before ``until`` (the provider's headers say it is used up)."""
        for (name, _), window in self._windows.items():
            if name == dimension:
                window.hold_until(until)

    def assume_used(self, now: float) -> None:
        """After a restart: act as if every window had been used to the full."""
        for window in self._windows.values():
            window.assume_used(now)


def _windows_of(rates: Rates) -> Iterable[tuple[tuple[Dimension, float], float, float, float]]:
    """Each window to keep: its key, limit, length and burst, in seconds."""
    dimensions: tuple[Dimension, ...] = ("requests", "tokens", "input_tokens", "output_tokens")
    for dimension in dimensions:
        limit = getattr(rates, dimension)
        if limit is None:
            continue
        strict = rates.pace_s is not None and rates.pace_s < rates.window_s
        yield (dimension, rates.window_s), limit, rates.window_s, 0.0 if strict else rates.window_s / 60
        if strict and rates.pace_s is not None and dimension == "requests":
            share = max(1.0, limit * rates.pace_s / rates.window_s)
            yield (dimension, rates.pace_s), share, rates.pace_s, 0.0
