"""Journals on a disk, an object store and DynamoDB (the last two on moto's real HTTP server)."""

from __future__ import annotations

import asyncio
import os
import pickle
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunemill.errors import ConfigError, RunFailed
from tunemill.llm.journal import Entry, Journal, compaction, open_journal
from tunemill.llm.journal.base import decode, encode, head_of
from tunemill.store import Location


def key_of(number: int) -> str:
    """A request's key."""
    return f"{number:032x}"


def entry(type_: str, number: int, *, call: str | None = None, usd: float = 0.0, body: bytes = b"", **more: object) -> Entry:
    """A record with sensible defaults."""
    identity = uuid.uuid4().hex if call is None else call
    return Entry(type=type_, key=key_of(number), call=identity, model="m", attempt=1, usd=usd, at=time.time(), body=body, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def aws() -> Iterator[str]:
    """moto's server with a bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    before = dict(os.environ)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    boto3.client("s3").create_bucket(Bucket="journals")
    yield f"http://{host}:{port}"
    os.environ.clear()
    os.environ.update(before)
    server.stop()


@pytest.fixture(params=["disk", "s3", "dynamodb"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Journal:
    """A new journal of each kind."""
    if request.param == "disk":
        made = open_journal(str(tmp_path / "journal"))
    else:
        request.getfixturevalue("aws")
        name = uuid.uuid4().hex
        made = open_journal(f"s3://journals/{name}" if request.param == "s3" else f"dynamodb://t{name}", job="/runs/x")
    made.prepare()
    return pickle.loads(pickle.dumps(made))


async def test_what_was_recorded_is_found_again(journal: Journal) -> None:
    """Answers come back whole with their totals; failures do not answer; dead letters do until an answer comes."""
    body = '{"text":"שלום 한국어 😀\\n"}'.encode()
    writer = journal.writer("w")
    await asyncio.gather(*(writer.intend([entry("intent", i, call=f"{i:x}", usd=0.5, body=b"{}")]) for i in range(8)))
    answers = [
        entry("answer", i, call=f"{i:x}", usd=0.25, body=body, status=200, headers={"x-request-id": "r"}) for i in range(5)
    ]
    await writer.record(answers)
    await writer.record([entry("failure", 5, call="5", usd=0.1, kind="overloaded", error="no")])
    await writer.record([entry("dead", 5, call="", kind="gave_up", error="no"), entry("dead", 6, call="", kind="rejected")])
    await writer.close()
    found = journal.reader(journal.open()[0]).find([key_of(i) for i in range(9)])
    assert {key: found[key].type for key in found} == {
        **{key_of(i): "answer" for i in range(5)},
        key_of(5): "dead",
        key_of(6): "dead",
    }
    assert found[key_of(3)].body == body
    assert found[key_of(3)].headers == {"x-request-id": "r"}
    summary = journal.summary()
    assert (summary.answers, summary.failures, summary.dead) == (5, 1, 2)
    assert {intent.key for intent in summary.maybe_paid} == {key_of(6), key_of(7)}
    assert summary.spent_usd == pytest.approx(5 * 0.25 + 0.1 + 2 * 0.5)


async def test_a_reader_sees_what_others_add(journal: Journal) -> None:
    """After a refresh, answers written by another writer are found, and an answer wins over an older dead letter."""
    first = journal.writer("a")
    await first.record([entry("dead", 1, call="", kind="gave_up")])
    reader = journal.reader(journal.open()[0])
    assert reader.find([key_of(1)])[key_of(1)].type == "dead"
    second = journal.writer("b")
    await second.record([entry("answer", 1, body=b"yes", status=200), entry("answer", 2, body=b"too", status=200)])
    reader.refresh()
    found = reader.find([key_of(1), key_of(2)])
    assert [found[key_of(i)].body for i in (1, 2)] == [b"yes", b"too"]
    await first.close()
    await second.close()


async def test_large_and_binary_bodies_survive(journal: Journal) -> None:
    """Bodies beyond DynamoDB's item size, and bodies that are not text, come back byte for byte."""
    bodies = {1: os.urandom(1_000_000), 2: b"\xff\xfe not text", 3: b"x" * 900_000}
    writer = journal.writer("w")
    await writer.record([entry("answer", i, body=body, status=200) for i, body in bodies.items()])
    await writer.close()
    found = journal.reader(journal.open()[0]).find([key_of(i) for i in bodies])
    assert {i: found[key_of(i)].body == body for i, body in bodies.items()} == dict.fromkeys(bodies, True)


async def many_objects(url: str) -> Journal:
    """A journal of 160 small objects: 80 callers with one answer each, and one open intent."""
    journal = open_journal(url)
    writers = [journal.writer(f"w{i:02d}") for i in range(80)]
    intents = [entry("intent", i, call=f"{i:x}", usd=0.5, body=b"{}") for i in range(80)]
    await asyncio.gather(*(writer.intend([intent]) for writer, intent in zip(writers, intents, strict=True)))
    kinds = {0: "failure", 1: "dead"}
    outcomes = [entry(kinds.get(i, "answer"), i, call=f"{i:x}", usd=0.25, body=b"text %d" % i, status=200) for i in range(79)]
    outcomes.append(entry("dead", 0, call="", kind="gave_up"))
    await asyncio.gather(*(writer.record([outcome]) for writer, outcome in zip(writers, outcomes, strict=True)))
    await asyncio.gather(*(writer.close() for writer in writers))
    return journal


def objects_of(journal: Journal) -> list[str]:
    """Names of a journal's objects."""
    return [file.name for file in Location(journal.url).files()]


@pytest.mark.usefixtures("aws")
async def test_small_objects_are_merged_beneath_open_readers() -> None:
    """Few objects say what many said, and a reader that was opened before goes on finding what they held."""
    journal = await many_objects(f"s3://journals/{uuid.uuid4().hex}")
    index, before = journal.open()
    old = journal.reader(index)
    keys = [key_of(i) for i in range(80)]
    first = old.find(keys[:3])
    assert len(objects_of(journal)) == 160
    journal.compact()
    assert len(objects_of(journal)) == 2
    assert journal.summary() == before
    assert [intent.key for intent in before.maybe_paid] == [key_of(79)]
    assert (before.answers, before.failures, before.dead, before.spent_usd) == (77, 1, 2, 79 * 0.25 + 0.5)
    new = journal.reader(journal.open()[0]).find(keys)
    assert new[key_of(50)].body == b"text 50"
    assert old.find(keys) == new
    assert first.items() <= new.items()
    journal.compact()
    assert len(objects_of(journal)) == 2


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize("deleted", [0, 1, 40])
async def test_a_kill_between_merging_and_deleting_changes_nothing(monkeypatch: pytest.MonkeyPatch, deleted: int) -> None:
    """With the merged object and all or some of its parts side by side nothing counts twice; the next time tidies up."""
    journal = await many_objects(f"s3://journals/{uuid.uuid4().hex}")
    before = journal.summary()
    left = [deleted]
    real = compaction._delete

    def killed(file: Location) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError("killed")
        real(file)

    monkeypatch.setattr(compaction, "_delete", killed)
    monkeypatch.setattr(compaction, "_REQUESTS", 1)
    with pytest.raises(OSError, match="killed"):
        journal.compact()
    assert len(objects_of(journal)) == 160 + 1 - deleted
    assert journal.summary() == before
    assert len(journal.reader(journal.open()[0]).find([key_of(i) for i in range(80)])) == 79
    monkeypatch.setattr(compaction, "_delete", real)
    monkeypatch.setattr(compaction, "LEAST_OBJECTS", 2)
    journal.compact()
    assert len(objects_of(journal)) == 2
    assert journal.summary() == before


async def test_a_torn_tail_is_tolerated(tmp_path: Path) -> None:
    """Whatever byte a killed writer stopped at, all whole records before it are read, and none is made up."""
    journal = open_journal(str(tmp_path))
    writer = journal.writer("w")
    for number in range(3):
        await writer.record([entry("answer", number, usd=1.0, body=b'{"a":"b\\n"}', status=200)])
    await writer.close()
    (file,) = tmp_path.glob("*.jsonl")
    whole = file.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in range(0, len(whole), 7):
        file.write_bytes(whole[:cut])
        found = journal.reader(journal.open()[0]).find([key_of(i) for i in range(3)])
        assert len(found) == sum(end <= cut for end in ends)
        assert journal.summary().spent_usd == len(found)


async def test_a_damaged_line_is_counted_and_skipped(tmp_path: Path) -> None:
    """A line of zeros (a lost disk block) hides nothing but itself."""
    journal = open_journal(str(tmp_path))
    writer = journal.writer("w")
    await writer.record([entry("answer", 1, body=b"{}", status=200)])
    await writer.close()
    (file,) = tmp_path.glob("*.jsonl")
    file.write_bytes(b"\0" * 40 + b"\n" + file.read_bytes())
    assert journal.summary().damaged == 1
    assert key_of(1) in journal.reader(journal.open()[0]).find([key_of(1)])


async def test_records_are_on_the_disk_before_they_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``record`` returns only after fdatasync, and a group shares one."""
    synced: list[int] = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append(os.fstat(fd).st_size), real(fd))[1])
    writer = open_journal(str(tmp_path)).writer("w")
    await asyncio.gather(*(writer.record([entry("answer", i, status=200)]) for i in range(100)))
    (file,) = tmp_path.glob("*.jsonl")
    assert synced[-1] == file.stat().st_size
    assert len(synced) <= 3
    await writer.close()


async def test_a_full_disk_stops_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the journal can not be written the call fails with what to know, instead of counting unrecorded answers."""

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    writer = open_journal(str(tmp_path)).writer("w")
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(RunFailed, match="No space left"):
        await writer.record([entry("answer", 1)])


def test_a_table_is_created_with_on_demand_billing(aws: str) -> None:
    """First use creates the table; nobody has to plan capacity."""
    import boto3

    journal = open_journal("dynamodb://first-use")
    journal.prepare()
    journal.prepare()
    table = boto3.client("dynamodb").describe_table(TableName="first-use")["Table"]
    assert table["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"


def test_an_unusable_journal_is_a_config_error(tmp_path: Path) -> None:
    """A path that can not be written, and a URL without a table, say so before any call."""
    (tmp_path / "file").write_text("")
    for url in (str(tmp_path / "file" / "journal"), "dynamodb://"):
        with pytest.raises(ConfigError, match="journal"):
            open_journal(url).prepare()


@given(
    text=st.text(st.characters(exclude_categories=["Cs"])),
    raw=st.binary(),
    error=st.text(st.characters(exclude_categories=["Cs"])),
)
@settings(max_examples=50, deadline=None)
def test_records_round_trip(text: str, raw: bytes, error: str) -> None:
    """Any body and message survive the line format, and heads are read without bodies."""
    for body in (text.encode(), raw, b',"body":"'):
        record = entry("answer", 7, body=body, error=error, status=200)
        line = encode(record)
        assert line.count(b"\n") == 1
        back = decode(line)
        assert (back.body, back.error) == (body, error)
        assert head_of(line[:-1])["key"] == record.key
