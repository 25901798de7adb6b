"""The values around one call: journal entries made from it, its result, and the row it becomes."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from tunemill.llm.config import ModelConfig
from tunemill.llm.journal import Entry
from tunemill.llm.lane import Request
from tunemill.llm.request import Answer, Failure, Provider, WireResponse

__all__ = ["Result", "as_row", "dead_letter", "intent_of", "outcome_of", "unsent"]

_KEPT_HEADERS = ("x-amzn-bedrock", "x-amzn-requestid", "x-request-id", "request-id", "apim-request-id", "content-type")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """How a request ended: with an answer, or with a reason for none."""

    entry: Entry | None = None
    """The journal's record; None where nothing was called."""
    answer: Answer | None = None
    reason: str | None = None
    error: str | None = None

    @classmethod
    def of(cls, provider: Provider, entry: Entry) -> Result:
        """The result that a record of the journal stands for."""
        if entry.type == "dead":
            return cls(entry=entry, reason=entry.kind, error=entry.error)
        outcome = provider.read(entry.status or 200, entry.headers, entry.body)
        if isinstance(outcome, Failure):
            return cls(entry=entry, reason=outcome.kind, error=outcome.message)
        return cls.answered(entry, outcome)

    @classmethod
    def answered(cls, entry: Entry, answer: Answer) -> Result:
        """An answer, or the reason why the provider withheld it."""
        if answer.blocked is not None:
            return cls(entry=entry, reason="blocked", error=answer.blocked)
        return cls(entry=entry, answer=answer)


def intent_of(request: Request, attempt: int) -> Entry:
    """What is written before a call; the request itself only once."""
    return Entry(
        type="intent",
        key=request.key,
        call=uuid.uuid4().hex,
        model=request.lane.model.name,
        attempt=attempt,
        usd=request.most_usd,
        at=_now(),
        url=request.wire.url,
        body=request.wire.body if attempt == 1 else b"",
    )


def outcome_of(
    request: Request,
    call: str,
    attempt: int,
    response: WireResponse | Failure,
    *,
    outcome: Answer | Failure,
    usd: float,
    latency_s: float,
) -> Entry:
    """What is written after a call: the raw response and what it cost."""
    raw = response if isinstance(response, WireResponse) else None
    failure = outcome if isinstance(outcome, Failure) else None
    return Entry(
        type="answer" if failure is None else "failure",
        key=request.key,
        call=call,
        model=request.lane.model.name,
        attempt=attempt,
        usd=usd,
        at=_now(),
        latency_s=round(latency_s, 4),
        status=response.status,
        input_tokens=outcome.input_tokens,
        output_tokens=outcome.output_tokens,
        kind="" if failure is None else failure.kind,
        error="" if failure is None else failure.message,
        headers={k: v for k, v in raw.headers.items() if k.startswith(_KEPT_HEADERS)} if raw else {},
        body=raw.body if raw else b"",
    )


def unsent(intent: Entry) -> Entry:
    """The outcome of a call that was intended and never sent: it can not have been paid."""
    return dataclasses.replace(intent, type="failure", usd=0.0, at=_now(), kind="connection", error="not sent", url="", body=b"")


def dead_letter(request: Request, attempt: int, reason: str, failure: Failure) -> Entry:
    """What is written when a request is given up."""
    return Entry(
        type="dead",
        key=request.key,
        call="",
        model=request.lane.model.name,
        attempt=attempt,
        usd=0.0,
        at=_now(),
        status=failure.status,
        kind=reason,
        error=f"{failure.kind}: {failure.message}",
    )


def as_row(row: Mapping[str, Any], model: ModelConfig, key: str, results: Sequence[Result]) -> dict[str, Any]:
    """The row with what came of it; ``results`` are those of its request and of repeated ones, the last one counts."""
    last = results[-1]
    entry, answer = last.entry, last.answer
    entries = [result.entry for result in results if result.entry is not None]
    columns: dict[str, Any] = {
        **row,
        "request_id": key,
        "provider": model.provider,
        "text": answer.text if answer else None,
        "finish_reason": answer.finish_reason if answer else None,
        "input_tokens": entry.input_tokens if entry else None,
        "output_tokens": entry.output_tokens if entry else None,
        "cost_usd": sum(entry.usd for entry in entries),
        "latency_s": entry.latency_s if entry else None,
        "attempts": sum(entry.attempt for entry in entries),
        "created_at": _iso(entry.at) if entry else None,
        "reason": last.reason,
        "status": entry.status if entry and last.reason else None,
        "error": last.error,
    }
    if model.task == "embed":
        columns["vectors"] = answer.vectors if answer else None
    return columns


def _now() -> float:
    return round(time.time(), 3)


def _iso(at: float) -> str:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=round(at * 1000))
    return moment.isoformat(timespec="milliseconds")
