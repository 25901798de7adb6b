"""A journal in a DynamoDB table, for those who want to look at answers in a console.

The partition key ``key`` is the request's key, the sort key ``part`` the kind of record. Bodies over 300 kB
are compressed and split, since an item holds 400 KB. Open intents stand under keys of their own and are
deleted once their outcome is written, so they are found without a scan.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

from tunemill.errors import ConfigError, RunFailed
from tunemill.llm.journal.base import Entry, JournalWriter, OpenIntent, Summary
from tunemill.llm.journal.writers import GroupCommit

__all__ = ["DynamoJournal", "DynamoReader", "DynamoWriter"]

_PLAIN_BYTES = 300_000
_CHUNK_BYTES = 350_000
_SHARDS = 16
_BATCH_WRITE = 25
_BATCH_BYTES = 8_000_000
_BATCH_GET = 50


@dataclasses.dataclass(frozen=True)
class DynamoJournal:
    """``dynamodb://table``; region, credentials and endpoint come from the environment, as for all of AWS."""

    url: str
    job: str = "generate"

    @property
    def shared(self) -> bool:
        """Every node sees it."""
        return True

    @property
    def table(self) -> str:
        """The table's name."""
        return self.url.removeprefix("dynamodb://").strip("/")

    @cached_property
    def client(self) -> Any:
        """A client of this process; these calls are free to repeat, so boto3 may."""
        import boto3
        import botocore.config

        config = botocore.config.Config(retries={"total_max_attempts": 8, "mode": "standard"}, max_pool_connections=8)
        return boto3.session.Session().client("dynamodb", config=config)

    def __getstate__(self) -> dict[str, str]:
        return {"url": self.url, "job": self.job}

    def prepare(self) -> None:
        """Create the table with on-demand billing where it does not exist."""
        import botocore.exceptions

        if not self.table:
            raise ConfigError(f"journal {self.url}: names no table, should be dynamodb://TABLE")
        try:
            try:
                self.client.describe_table(TableName=self.table)
            except self.client.exceptions.ResourceNotFoundException:
                self._create()
        except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
            raise ConfigError(f"journal {self.url}: {error}; check region, credentials and the table's name") from error

    def _create(self) -> None:
        self.client.create_table(
            TableName=self.table,
            AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("key", "part")],
            KeySchema=[{"AttributeName": "key", "KeyType": "HASH"}, {"AttributeName": "part", "KeyType": "RANGE"}],
            BillingMode="PAY_PER_REQUEST",
        )
        self.client.get_waiter("table_exists").wait(TableName=self.table)

    def compact(self) -> None:
        """Nothing: a table is not read as a whole."""

    def open(self) -> tuple[None, Summary]:
        """Readers start from nothing: they ask the table."""
        return None, self.summary()

    def reader(self, index: None) -> DynamoReader:
        """A reader of the table."""
        return DynamoReader(self)

    def writer(self, name: str) -> JournalWriter:
        """A writer to the table."""
        return DynamoWriter(self)

    def summary(self) -> Summary:
        """This job's totals, and its open intents."""
        total = self.client.get_item(TableName=self.table, Key=_key(f"spend#{self.job}", "total"), ConsistentRead=True).get(
            "Item", {}
        )
        counts = {name: float(total.get(name, {"N": "0"})["N"]) for name in ("usd", "answers", "failures", "dead")}
        intents = [OpenIntent(**json.loads(item["head"]["S"])) for item in self._open_intents()]
        found = DynamoReader(self).find([intent.key for intent in intents])
        answered = {key for key, entry in found.items() if entry.type == "answer"}
        return Summary(
            unanswered=len({intent.key for intent in intents} - answered),
            answers=int(counts["answers"]),
            failures=int(counts["failures"]),
            dead=int(counts["dead"]),
            spent_usd=counts["usd"] + sum(intent.usd for intent in intents),
            maybe_paid=tuple(sorted(intents, key=lambda intent: intent.at)),
            damaged=0,
        )

    def _open_intents(self) -> Iterator[dict[str, Any]]:
        pages = self.client.get_paginator("query")
        for shard in range(_SHARDS):
            for page in pages.paginate(
                TableName=self.table,
                KeyConditionExpression="#k = :k",
                ExpressionAttributeNames={"#k": "key"},
                ExpressionAttributeValues={":k": {"S": f"intent#{self.job}#{shard:x}"}},
                ConsistentRead=True,
            ):
                yield from page["Items"]


class DynamoReader:
    """Looks requests up in the table."""

    def __init__(self, journal: DynamoJournal) -> None:
        self._journal = journal

    def find(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Answers, otherwise dead letters, read consistently."""
        found: dict[str, Entry] = {}
        for some in _batches(keys):
            wanted = [_key(key, part) for key in some for part in ("answer#0000", "dead")]
            for item in self._get(wanted):
                entry = self._entry(item)
                if entry.type == "answer" or entry.key not in found:
                    found[entry.key] = entry
        return found

    def refresh(self) -> None:
        """Nothing is remembered."""

    def _get(self, wanted: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        table = self._journal.table
        left: dict[str, Any] = {table: {"Keys": wanted, "ConsistentRead": True}}
        while left:
            answer = self._journal.client.batch_get_item(RequestItems=left)
            yield from answer["Responses"].get(table, [])
            left = answer.get("UnprocessedKeys", {})

    def _entry(self, item: dict[str, Any]) -> Entry:
        head = json.loads(item["head"]["S"])
        if "body" in item:
            return Entry(**head, body=item["body"]["S"].encode())
        parts = int(item.get("parts", {"N": "0"})["N"])
        if not parts:
            return Entry(**head)
        chunks = {item["part"]["S"]: item["data"]["B"]}
        wanted = [_key(head["key"], f"answer#{number:04d}") for number in range(1, parts)]
        for more in self._get(wanted) if wanted else ():
            chunks[more["part"]["S"]] = more["data"]["B"]
        return Entry(**head, body=zlib.decompress(b"".join(chunks[name] for name in sorted(chunks))))


class DynamoWriter:
    """Writes records in batches, one batch at a time."""

    def __init__(self, journal: DynamoJournal) -> None:
        self._journal = journal
        self._intents: GroupCommit[Entry] = GroupCommit(self._guarded(self._write_intents))
        self._outcomes: GroupCommit[Entry] = GroupCommit(self._guarded(self._write_outcomes))

    async def intend(self, entries: Sequence[Entry]) -> None:
        """Put the intents of a lease, and their requests."""
        await self._intents.add(list(entries))

    async def record(self, entries: Sequence[Entry]) -> None:
        """Count the money, put the outcomes, then delete their intents: a kill in between counts too much, never too little."""
        await self._outcomes.add(list(entries))

    async def close(self) -> None:
        """Write what is left."""
        await self._intents.close()
        await self._outcomes.close()

    def _write_intents(self, entries: list[Entry]) -> None:
        puts = []
        for entry in entries:
            names = (field.name for field in dataclasses.fields(OpenIntent))
            head = json.dumps({name: getattr(entry, name) for name in names})
            puts.append({"PutRequest": {"Item": {**_key(*self._intent_key(entry.call)), "head": {"S": head}}}})
            if entry.body:
                puts += [{"PutRequest": {"Item": item}} for item in _items(entry, "request")]
        self._write(puts)

    def _write_outcomes(self, entries: list[Entry]) -> None:
        self._count(entries)
        parts = {"answer": "answer", "dead": "dead"}
        self._write(
            {"PutRequest": {"Item": item}}
            for entry in entries
            for item in _items(entry, parts.get(entry.type, f"failure#{entry.call}"))
        )
        self._write({"DeleteRequest": {"Key": _key(*self._intent_key(entry.call))}} for entry in entries if entry.call)

    def _count(self, entries: list[Entry]) -> None:
        names = {"#usd": "usd", "#answers": "answers", "#failures": "failures", "#dead": "dead"}
        kinds = {"answers": "answer", "failures": "failure", "dead": "dead"}
        values = {f":{name}": {"N": str(sum(entry.type == kind for entry in entries))} for name, kind in kinds.items()}
        usd = format(sum(entry.usd for entry in entries), ".12f").rstrip("0").rstrip(".")
        values[":usd"] = {"N": usd}
        self._journal.client.update_item(
            TableName=self._journal.table,
            Key=_key(f"spend#{self._journal.job}", "total"),
            UpdateExpression="ADD #usd :usd, #answers :answers, #failures :failures, #dead :dead",
            ExpressionAttributeNames=names,
            ExpressionAttributeValues=values,
        )

    def _intent_key(self, call: str) -> tuple[str, str]:
        return f"intent#{self._journal.job}#{int(call[-1], 16) % _SHARDS:x}", call

    def _write(self, requests: Iterable[dict[str, Any]]) -> None:
        group: list[dict[str, Any]] = []
        size = 0
        for request in requests:
            weight = _weight(request)
            if group and (len(group) == _BATCH_WRITE or size + weight > _BATCH_BYTES):
                self._batch(group)
                group, size = [], 0
            group.append(request)
            size += weight
        if group:
            self._batch(group)

    def _batch(self, group: list[dict[str, Any]]) -> None:
        unique = {_identity(request): request for request in group}
        left: dict[str, Any] = {self._journal.table: list(unique.values())}
        while left:
            left = self._journal.client.batch_write_item(RequestItems=left).get("UnprocessedItems", {})

    def _guarded(self, write: Callable[[list[Entry]], None]) -> Callable[[list[Entry]], None]:
        def guarded(entries: list[Entry]) -> None:
            import botocore.exceptions

            try:
                write(entries)
            except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
                raise RunFailed(str(error)) from error

        return guarded


def _key(key: str, part: str) -> dict[str, Any]:
    return {"key": {"S": key}, "part": {"S": part}}


def _items(entry: Entry, part: str) -> Iterator[dict[str, Any]]:
    """One item, or several where the body is large."""
    head = {f.name: v for f in dataclasses.fields(entry) if f.name != "body" and (v := getattr(entry, f.name)) not in (None, {})}
    record = {"head": {"S": json.dumps(head, ensure_ascii=False)}}
    first = f"{part}#0000" if part == "answer" else part
    try:
        text = entry.body.decode("utf-8") if len(entry.body) <= _PLAIN_BYTES else None
    except UnicodeDecodeError:
        text = None
    if text is not None:
        yield {**_key(entry.key, first), **record, **({"body": {"S": text}} if text else {})}
        return
    packed = zlib.compress(entry.body)
    chunks = [packed[at : at + _CHUNK_BYTES] for at in range(0, len(packed), _CHUNK_BYTES)]
    # the first chunk says how many there are, so it is written last
    for number, chunk in reversed(list(enumerate(chunks))):
        name = first if number == 0 else f"{part}#{number:04d}"
        yield {**_key(entry.key, name), **(record if number == 0 else {}), "parts": {"N": str(len(chunks))}, "data": {"B": chunk}}


def _weight(request: dict[str, Any]) -> int:
    item = request.get("PutRequest", {}).get("Item", {})
    return 200 + sum(len(value) for field in item.values() for value in field.values() if isinstance(value, (str, bytes)))


def _identity(request: dict[str, Any]) -> tuple[str, str]:
    place = request["PutRequest"]["Item"] if "PutRequest" in request else request["DeleteRequest"]["Key"]
    return place["key"]["S"], place["part"]["S"]


def _batches(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    unique = list(dict.fromkeys(keys))
    for at in range(0, len(unique), _BATCH_GET):
        yield unique[at : at + _BATCH_GET]
