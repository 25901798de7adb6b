"""How callers reach the named actors: Ray's errors become BudgetLost, and a lost actor is looked up again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from tunemill.llm.gate import BudgetLost
from tunemill.llm.ledger import Purse, Tally
from tunemill.llm.messages import Ask, Grant, Report, Terms

__all__ = ["RayBudget", "RayLedger"]


class _RayClient:
    def __init__(self, find: Callable[[], Any]) -> None:
        self._find = find
        self._handle = find()

    async def _call(self, method: str, *arguments: Any) -> Any:
        from ray.exceptions import RayActorError

        try:
            return await getattr(self._handle, method).remote(*arguments)
        except RayActorError as error:
            with contextlib.suppress(ValueError, RayActorError):
                self._handle = self._find()
            raise BudgetLost(str(error)) from error


class RayBudget(_RayClient):
    """Reach a budget actor."""

    async def join(self, job: str, caller: str, terms: Terms) -> Grant:
        return await self._call("join", job, caller, terms)

    async def report(self, report: Report) -> Grant:
        return await self._call("report", report)

    async def lease(self, ask: Ask) -> Grant:
        return await self._call("lease", ask)

    async def leave(self, caller: str) -> None:
        await self._call("leave", caller)


class RayLedger(_RayClient):
    """Reach a ledger actor."""

    async def lease(self, caller: str, need_usd: float, reserved_usd: float, spent_usd: float) -> Purse:
        return await self._call("lease", caller, need_usd, reserved_usd, spent_usd)

    async def report(self, caller: str, spent_usd: float, leased_usd: float | None, tallies: dict[str, Tally]) -> str | None:
        return await self._call("report", caller, spent_usd, leased_usd, tallies)

    async def begin(self, block: str) -> bool:
        return await self._call("begin", block)

    async def stop(self, kind: str, message: str) -> None:
        await self._call("stop", kind, message)
