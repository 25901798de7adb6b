"""A caller's side of the ledger: money reserved before each call, totals reported, the stop sign seen.

What is leased covers what calls in flight may cost; what they did cost is taken out of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Protocol

from tunemill.llm.gate import BudgetLost, Stopped
from tunemill.llm.ledger import Purse, Tally

__all__ = ["LedgerClient", "PurseKeeper"]

_AGAIN_S = 0.25


class LedgerClient(Protocol):
    """How a caller reaches its job's ledger; raises BudgetLost."""

    def lease(self, caller: str, need_usd: float, reserved_usd: float, spent_usd: float) -> Awaitable[Purse]: ...

    def report(
        self, caller: str, spent_usd: float, leased_usd: float | None, tallies: dict[str, Tally]
    ) -> Awaitable[str | None]: ...

    def begin(self, block: str) -> Awaitable[bool]: ...

    def stop(self, kind: str, message: str) -> Awaitable[None]: ...


class PurseKeeper:
    """One caller's money and counts; used on one event loop."""

    def __init__(self, ledger: LedgerClient, caller: str, *, capped: bool) -> None:
        self.ledger = ledger
        self.tallies: dict[str, Tally] = {}
        self.stopped: str | None = None
        self._caller = caller
        self._capped = capped
        self._leased_usd = 0.0
        self._reserved_usd = 0.0
        self._spent_usd = 0.0
        self._lock = asyncio.Lock()
        self._over_need = float("inf")

    def tally(self, model: str) -> Tally:
        """The counts of a model."""
        return self.tallies.setdefault(model, Tally())

    async def reserve(self, usd: float) -> bool:
        """Set money aside for one call; False when the cap does not allow it. Raises Stopped."""
        if not self._capped:
            return True
        while not self._take(usd):
            if self.stopped is not None:
                raise Stopped
            if usd >= self._over_need:
                return False
            async with self._lock:
                if self._take(usd):
                    return True
                verdict = await self._lease(usd)
            if verdict == "over":
                self._over_need = min(self._over_need, usd)
                return False
            if verdict == "wait":
                await asyncio.sleep(_AGAIN_S)
        return True

    def settle(self, reserved_usd: float, real_usd: float) -> None:
        """Replace what was set aside by what the call cost."""
        self._spent_usd += real_usd
        if self._capped:
            self._reserved_usd -= reserved_usd
            self._leased_usd -= real_usd

    async def report(self) -> None:
        """Tell the ledger the totals and see whether the job was stopped."""
        async with self._lock:
            leased = self._leased_usd if self._capped else None
            try:
                self.stopped = await self.ledger.report(self._caller, self._spent_usd, leased, dict(self.tallies))
            except BudgetLost:
                return

    def _take(self, usd: float) -> bool:
        if self._reserved_usd + usd > self._leased_usd + 1e-12:
            return False
        self._reserved_usd += usd
        return True

    async def _lease(self, usd: float) -> str:
        # what is not reserved goes back with the question, so nobody may take it while the answer is on its way
        asked_with = self._leased_usd = self._reserved_usd
        try:
            purse = await self.ledger.lease(self._caller, usd, asked_with, self._spent_usd)
        except BudgetLost:
            return "wait"
        if purse.verdict == "ok":
            self._leased_usd += purse.leased_usd - asked_with
        self.stopped = purse.stopped
        return purse.verdict
