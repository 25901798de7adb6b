"""What a journal is, whatever it is kept on.

Four kinds of records, each keyed by its request: an *intent* before a call, then its *answer* or its
*failure*, and a *dead* letter when a request is given up. A call is one intent and at most one outcome,
joined by the call's id; an intent without an outcome may have been paid.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

__all__ = [
    "Entry",
    "Journal",
    "JournalReader",
    "JournalWriter",
    "OpenIntent",
    "Summary",
    "decode",
    "encode",
    "head_of",
    "open_journal",
]

_BODY = b',"body":'


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One record."""

    type: str
    """intent, answer, failure or dead."""
    key: str
    """The request's key (32 hex digits)."""
    call: str
    """The call's id; empty for a dead letter."""
    model: str
    attempt: int
    usd: float
    """An intent's highest possible price; an outcome's real one."""
    at: float
    """Seconds since the epoch."""
    latency_s: float = 0.0
    status: int | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    kind: str = ""
    """Kind of a failure, reason of a dead letter."""
    error: str = ""
    url: str = ""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    body: bytes = b""
    """Of the request for an intent, of the response for an outcome."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OpenIntent:
    """A call without an outcome: it may have been paid."""

    key: str
    call: str
    model: str
    attempt: int
    usd: float
    at: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What a journal says in total."""

    answers: int
    failures: int
    dead: int
    spent_usd: float
    """Price of all outcomes, and the highest possible price of the calls without one."""
    maybe_paid: tuple[OpenIntent, ...]
    """Every call without an outcome, the oldest first."""
    unanswered: int
    """Requests among them that have no answer yet, so that they are called again."""
    damaged: int
    """Lines that can not be read (the torn end of a killed writer)."""


class JournalWriter(Protocol):
    """Appends the records of one caller; used on one event loop."""

    async def intend(self, entries: Sequence[Entry]) -> None:
        """Return when the intents would survive the loss of this process (of the node, on shared storage)."""

    async def record(self, entries: Sequence[Entry]) -> None:
        """Return when the outcomes are durable."""

    async def close(self) -> None:
        """Flush and let go."""


class JournalReader(Protocol):
    """Looks requests up; blocking, used from one thread at a time."""

    def find(self, keys: Sequence[str]) -> dict[str, Entry]:
        """The answer of each key that has one, otherwise its latest dead letter."""

    def refresh(self) -> None:
        """Take in what other writers have added."""


class Journal(Protocol):
    """A journal at an address; picklable, opens on first use."""

    @property
    def url(self) -> str:
        """Its address, as the user wrote it."""

    @property
    def shared(self) -> bool:
        """False for a path that other nodes may not see."""

    def prepare(self) -> None:
        """Make the place where it is kept; ConfigError when that can not be."""

    def compact(self) -> None:
        """Make it quicker to open, where that is worth while; safe at any time. OSError where its storage raises it."""

    def open(self) -> tuple[Any, Summary]:
        """What readers start from (built once by the driver, shared by all workers), and the totals."""

    def reader(self, index: Any) -> JournalReader:
        """A reader that starts from what :meth:`open` returned."""

    def writer(self, name: str) -> JournalWriter:
        """A writer of its own for each caller."""

    def summary(self) -> Summary:
        """Totals, and the calls that may have been paid."""


def open_journal(url: str, *, job: str = "generate") -> Journal:
    """The journal at ``url``: a local folder, ``s3://`` or ``gs://``, or ``dynamodb://table``."""
    if url.startswith("dynamodb://"):
        from tunemill.llm.journal.dynamodb import DynamoJournal

        return DynamoJournal(url, job=job)
    from tunemill.llm.journal.files import FileJournal

    return FileJournal(url)


def encode(entry: Entry) -> bytes:
    """One line of JSON with the body last, so that totals can be read without parsing bodies."""
    head: dict[str, Any] = {"type": entry.type, "key": entry.key, "call": entry.call, "model": entry.model}
    head |= {"attempt": entry.attempt, "usd": entry.usd, "at": round(entry.at, 3)}
    for name in ("latency_s", "status", "input_tokens", "output_tokens", "kind", "error", "url", "headers"):
        if value := getattr(entry, name):
            head[name] = dict(value) if name == "headers" else value
    if entry.body:
        try:
            head["body"] = entry.body.decode("utf-8")
        except UnicodeDecodeError:
            head["base64"] = True
            head["body"] = base64.b64encode(entry.body).decode()
    return json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass") + b"\n"


def decode(line: bytes) -> Entry:
    """The inverse of :func:`encode`; ValueError on a damaged line."""
    values = json.loads(line)
    body = values.pop("body", "")
    raw = base64.b64decode(body) if values.pop("base64", False) else body.encode("utf-8", "surrogatepass")
    return Entry(**values, body=raw)


def head_of(line: bytes) -> dict[str, Any]:
    """The record without its body; ValueError on a damaged line."""
    if not line.endswith(b"}"):
        raise ValueError("torn line")
    cut = line.find(_BODY)
    values: dict[str, Any] = json.loads(line if cut < 0 else line[:cut] + b"}")
    return values


def open_intents(intents: Iterable[Mapping[str, Any]]) -> tuple[OpenIntent, ...]:
    """Typed intents, the oldest first."""
    names = [field.name for field in dataclasses.fields(OpenIntent)]
    return tuple(OpenIntent(**{name: intent[name] for name in names}) for intent in sorted(intents, key=lambda i: i["at"]))
