"""What to do after a failed call: a pure policy.

Waiting happens outside any slot of the limiter, and a retry queues up with new calls afterwards.
"""

from __future__ import annotations

import dataclasses

from tunemill.llm.request import Failure

__all__ = ["GiveUp", "Retry", "RetryBudget", "RetryPolicy"]


@dataclasses.dataclass(frozen=True, slots=True)
class Retry:
    """Try again after ``delay_s``."""

    delay_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class GiveUp:
    """Stop trying; ``reason`` names the dropped row's reason."""

    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Backoff with full jitter (Brooker, "Exponential Backoff And Jitter", 2015), in seconds."""

    most_attempts: int = 6
    """Calls for one request that fail for other reasons than throttling."""
    base_s: float = 0.5
    longest_s: float = 30.0
    patience_s: float = 1800.0
    """Throttled and refused calls are tried for this long: they cost nothing."""
    longest_hint_s: float = 300.0

    def decide(self, failure: Failure, *, failures: int, throttles: int, elapsed_s: float, draw: float) -> Retry | GiveUp:
        """``failures`` and ``throttles`` count this request's failed calls, this one included; ``draw`` is uniform in [0, 1)."""
        if not failure.retryable:
            return GiveUp("rejected" if failure.kind == "rejected" else failure.kind)
        if failure.kind in ("throttled", "connection"):
            if elapsed_s > self.patience_s:
                return GiveUp("gave_up")
            return Retry(self._delay(failure, throttles, draw))
        if failures >= self.most_attempts:
            return GiveUp("gave_up")
        return Retry(self._delay(failure, failures, draw))

    def _delay(self, failure: Failure, count: int, draw: float) -> float:
        backoff_s = min(self.longest_s, self.base_s * 2.0 ** min(count - 1, 16)) * (0.5 + draw / 2)
        if failure.retry_after_s is None:
            return backoff_s
        # a little later than asked for, so that many callers with one hint do not arrive at once
        return min(max(failure.retry_after_s, 0.0), self.longest_hint_s) * (1 + 0.1 * draw) + 0.05 * draw


@dataclasses.dataclass(slots=True)
class RetryBudget:
    """Keeps retries a minority of all calls: each first call earns a fraction of a retry.

    When a server fails everywhere, retries wait for new calls (or for ``trickle_s`` each) instead of
    multiplying the load.
    """

    ratio: float = 0.3
    most: float = 50.0
    trickle_s: float = 1.0
    _tokens: float = 20.0
    _free_at: float = float("-inf")

    def earn(self) -> None:
        """Note a first call."""
        self._tokens = min(self.most, self._tokens + self.ratio)

    def delay_s(self, now: float) -> float:
        """How long a retry has to wait before it may queue up (it counts as taken)."""
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        self._free_at = max(self._free_at, now) + self.trickle_s
        return self._free_at - now
