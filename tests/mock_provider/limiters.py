"""Two limiters that know nothing of tunemill's: a sliding window log and a token bucket.

Both take an amount for each dimension at admission and may be given some back when the true usage is known.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Protocol

from mock_provider.config import Limit

__all__ = ["Limiter", "Ticket", "TokenBucket", "limiter_for"]

Amounts = Mapping[str, float]  # "requests" | "tokens" | "input_tokens" | "output_tokens" -> amount


@dataclasses.dataclass(slots=True)
class Ticket:
    """What one admitted call holds."""

    amounts: dict[str, float]
    alive: bool = True


class Limiter(Protocol):
    """One account's use of one model."""

    def admit(self, now: float, amounts: Amounts) -> Ticket | str:
        """Take the amounts, or the name of the dimension that has too little left (then nothing is taken)."""

    def settle(self, ticket: Ticket, amounts: Amounts) -> None:
        """Replace what the ticket holds by the true usage."""

    def remaining(self, now: float) -> dict[str, float]:
        """What is left by dimension."""

    def wait_s(self, now: float, dimension: str, amount: float) -> float:
        """Seconds until the amount would be there."""


class SlidingWindow:
    """At most ``allowed`` of each dimension in any window; every call is remembered until it leaves the window."""

    def __init__(self, allowed: Mapping[str, float], window_s: float) -> None:
        self.allowed = dict(allowed)
        self.window_s = window_s
        self.used = dict.fromkeys(allowed, 0.0)
        self.log: collections.deque[tuple[float, Ticket]] = collections.deque()

    def admit(self, now: float, amounts: Amounts) -> Ticket | str:
        self._forget(now)
        for name, allowed in self.allowed.items():
            if self.used[name] + amounts[name] > allowed + 1e-9:
                return name
        ticket = Ticket({name: amounts[name] for name in self.allowed})
        for name, amount in ticket.amounts.items():
            self.used[name] += amount
        self.log.append((now, ticket))
        return ticket

    def settle(self, ticket: Ticket, amounts: Amounts) -> None:
        if not ticket.alive:
            return
        for name in self.allowed:
            self.used[name] += amounts[name] - ticket.amounts[name]
            ticket.amounts[name] = amounts[name]

    def remaining(self, now: float) -> dict[str, float]:
        self._forget(now)
        return {name: max(0.0, allowed - self.used[name]) for name, allowed in self.allowed.items()}

    def wait_s(self, now: float, dimension: str, amount: float) -> float:
        free = self.allowed[dimension] - self.used[dimension]
        for moment, ticket in self.log:
            if free >= amount:
                return 0.0
            free += ticket.amounts[dimension]
            if free >= amount:
                return max(0.0, moment + self.window_s - now)
        return 0.0 if free >= amount else self.window_s

    def _forget(self, now: float) -> None:
        while self.log and self.log[0][0] <= now - self.window_s:
            _, ticket = self.log.popleft()
            ticket.alive = False
            for name, amount in ticket.amounts.items():
                self.used[name] -= amount


class TokenBucket:
    """Each dimension refills evenly up to a capacity."""

    def __init__(self, allowed: Mapping[str, float], window_s: float, burst: float) -> None:
        self.rate = {name: value / window_s for name, value in allowed.items()}
        self.capacity = {name: max(1.0, value * burst) for name, value in allowed.items()}
        self.level = dict(self.capacity)
        self.at: float | None = None

    def admit(self, now: float, amounts: Amounts) -> Ticket | str:
        self._refill(now)
        for name, level in self.level.items():
            if amounts[name] > level + 1e-9:
                return name
        ticket = Ticket({name: amounts[name] for name in self.level})
        for name, amount in ticket.amounts.items():
            self.level[name] -= amount
        return ticket

    def settle(self, ticket: Ticket, amounts: Amounts) -> None:
        for name in self.level:
            self.level[name] += ticket.amounts[name] - amounts[name]
            ticket.amounts[name] = amounts[name]

    def remaining(self, now: float) -> dict[str, float]:
        self._refill(now)
        return {name: max(0.0, level) for name, level in self.level.items()}

    def wait_s(self, now: float, dimension: str, amount: float) -> float:
        return max(0.0, (amount - self.level[dimension]) / self.rate[dimension])

    def _refill(self, now: float) -> None:
        passed = now - self.at if self.at is not None else 0.0
        self.at = now
        for name, rate in self.rate.items():
            self.level[name] = min(self.capacity[name], self.level[name] + rate * passed)


class Several:
    """All of some limiters at once."""

    def __init__(self, parts: list[Limiter]) -> None:
        self.parts = parts
        self.tickets: dict[int, list[Ticket]] = {}

    def admit(self, now: float, amounts: Amounts) -> Ticket | str:
        taken: list[tuple[Limiter, Ticket]] = []
        for part in self.parts:
            ticket = part.admit(now, amounts)
            if isinstance(ticket, str):
                for limiter, earlier in taken:
                    limiter.settle(earlier, dict.fromkeys(amounts, 0.0))
                return ticket
            taken.append((part, ticket))
        whole = Ticket(dict(amounts))
        self.tickets[id(whole)] = [ticket for _, ticket in taken]
        return whole

    def settle(self, ticket: Ticket, amounts: Amounts) -> None:
        for part, inner in zip(self.parts, self.tickets.pop(id(ticket), ()), strict=False):
            part.settle(inner, amounts)

    def remaining(self, now: float) -> dict[str, float]:
        result: dict[str, float] = {}
        for part in self.parts:
            for name, left in part.remaining(now).items():
                result[name] = min(left, result.get(name, left))
        return result

    def wait_s(self, now: float, dimension: str, amount: float) -> float:
        waits = (part.wait_s(now, dimension, amount) for part in self.parts if dimension in part.remaining(now))
        return max(waits, default=0.0)


def limiter_for(limit: Limit) -> Limiter:
    """The limiter that a `Limit` describes."""
    named = {"requests": limit.rpm, "tokens": limit.tpm, "input_tokens": limit.input_tpm, "output_tokens": limit.output_tpm}
    allowed = {name: value for name, value in named.items() if value is not None}
    parts: list[Limiter] = []
    if limit.kind in ("sliding", "both"):
        parts.append(SlidingWindow(allowed, limit.window_s))
    if limit.kind in ("bucket", "both"):
        parts.append(TokenBucket(allowed, limit.window_s, limit.burst))
    if limit.request_window_s is not None and limit.rpm is not None:
        share = limit.rpm * limit.request_window_s / limit.window_s
        parts.append(SlidingWindow({"requests": max(1.0, share)}, limit.request_window_s))
    return parts[0] if len(parts) == 1 else Several(parts)
