"""What a job may spend: one purse for all its models and callers, as a pure state machine.

Money is leased before a call and settled after it. Callers state the total that they have spent, never
differences, so a repeated or a late message changes nothing. The lease of a caller that falls silent
counts as spent: it may have paid.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

__all__ = ["CALLER_EXPIRES_S", "Ledger", "Purse", "Tally"]

CALLER_EXPIRES_S = 30.0


@dataclasses.dataclass(slots=True)
class Tally:
    """Counts of one model, or of several added up."""

    calls: int = 0
    answers: int = 0
    reused: int = 0
    throttled: int = 0
    failures: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0

    def add(self, other: Tally) -> None:
        """Add the counts of ``other``."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@dataclasses.dataclass(frozen=True, slots=True)
class Purse:
    """The answer to a question for money."""

    verdict: Literal["ok", "wait", "over"]
    """wait: none is free now, but calls in flight may give some back; over: the cap is reached."""
    leased_usd: float = 0.0
    stopped: str | None = None
    """Why the job stops, when it does."""


@dataclasses.dataclass(slots=True)
class _Holder:
    spent_usd: float = 0.0
    leased_usd: float = 0.0
    seen: float = 0.0
    tallies: dict[str, Tally] = dataclasses.field(default_factory=dict)


class Ledger:
    """The money, the counts and the stop sign of one job."""

    def __init__(self, budget_usd: float | None, spent_usd: float = 0.0) -> None:
        self.budget_usd = budget_usd
        self.spent_before_usd = spent_usd
        self.stopped: str | None = None
        self.stop_kind: str = ""
        self._holders: dict[str, _Holder] = {}
        self._begun: set[str] = set()
        self._complete_memory = True

    def lease(self, caller: str, need_usd: float, reserved_usd: float, spent_usd: float, now: float) -> Purse:
        """Lease at least ``need_usd`` beyond what the caller's calls in flight have reserved.

        What the caller held beyond ``reserved_usd`` goes back first. A lease is a fiftieth of what is
        left, or the need where that is more.
        """
        holder = self._holder(caller, now)
        holder.spent_usd = max(holder.spent_usd, spent_usd)
        holder.leased_usd = reserved_usd
        if self.budget_usd is None:
            return Purse("ok", float("inf"), self.stopped)
        left = self.left_usd
        if need_usd > left + 1e-12:
            out = sum(other.leased_usd for other in self._holders.values() if now - other.seen <= CALLER_EXPIRES_S)
            return Purse("wait" if need_usd <= left + out + 1e-12 and out > 0 else "over", reserved_usd, self.stopped)
        holder.leased_usd = reserved_usd + min(left, max(need_usd, left / 50))
        return Purse("ok", holder.leased_usd, self.stopped)

    def report(
        self, caller: str, spent_usd: float, leased_usd: float | None, tallies: dict[str, Tally], now: float
    ) -> str | None:
        """Take in a caller's totals; ``leased_usd`` lowers its lease (None leaves it). Returns the stop sign."""
        holder = self._holder(caller, now)
        holder.spent_usd = max(holder.spent_usd, spent_usd)
        if leased_usd is not None:
            holder.leased_usd = min(holder.leased_usd, leased_usd)
        holder.tallies = tallies
        return self.stopped

    def stop(self, kind: str, message: str) -> None:
        """Stop the job: the first reason stays."""
        if self.stopped is None:
            self.stopped, self.stop_kind = message, kind

    def begin(self, block: str) -> bool:
        """Note that a block of rows is taken up; True when it may have been worked on before (its worker died)."""
        again = block in self._begun or not self._complete_memory
        self._begun.add(block)
        return again

    @property
    def left_usd(self) -> float:
        """USD that nobody has spent or leased."""
        if self.budget_usd is None:
            return float("inf")
        held = sum(holder.spent_usd + holder.leased_usd for holder in self._holders.values())
        return max(0.0, self.budget_usd - self.spent_before_usd - held)

    def totals(self) -> dict[str, Tally]:
        """Counts by model, over all callers."""
        models: dict[str, Tally] = {}
        for holder in self._holders.values():
            for model, tally in holder.tallies.items():
                models.setdefault(model, Tally()).add(tally)
        return models

    def snapshot(self) -> dict[str, Any]:
        """What must outlive this process."""
        return {
            "budget_usd": self.budget_usd,
            "spent_before_usd": self.spent_before_usd,
            "stopped": self.stopped,
            "stop_kind": self.stop_kind,
            "holders": {name: (h.spent_usd, h.leased_usd) for name, h in self._holders.items()},
        }

    @classmethod
    def restored(cls, snapshot: dict[str, Any], now: float) -> Ledger:
        """The ledger after a restart: every lease still counts, and any block may have been begun."""
        ledger = cls(snapshot["budget_usd"], snapshot["spent_before_usd"])
        ledger.stopped, ledger.stop_kind = snapshot["stopped"], snapshot["stop_kind"]
        ledger._holders = {name: _Holder(spent, leased, now) for name, (spent, leased) in snapshot["holders"].items()}
        ledger._complete_memory = False
        return ledger

    def _holder(self, caller: str, now: float) -> _Holder:
        holder = self._holders.setdefault(caller, _Holder())
        holder.seen = now
        return holder
