"""A journal in files: one append per group of records on a disk, one object per group on an object store.

Every caller writes files of its own, so nothing is ever written by two. Lines are JSON. A reader keeps
only where each answer stands (32 bytes a request), and reads bodies when they are asked for.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from tunemill.errors import ConfigError, RunFailed
from tunemill.llm.journal.base import Entry, JournalWriter, Summary, decode, head_of, open_intents
from tunemill.llm.journal.compaction import compact, read_if_there
from tunemill.llm.journal.writers import DiskWriter, ObjectWriter
from tunemill.store import Location

__all__ = ["FileIndex", "FileJournal", "FileReader"]

_ANSWER, _DEAD = 1, 0
_READERS = 16
_READ_BYTES = 1 << 23
_CACHED_OBJECTS = 4
_LOOKS = 3


@dataclasses.dataclass(frozen=True)
class FileIndex:
    """Where each answered or dead request stands: sorted by key, answers before dead letters."""

    files: tuple[str, ...]
    """Names of the files, in the order of ``file``."""
    read: tuple[int, ...]
    """Bytes of each file that were read."""
    high: npt.NDArray[np.uint64]
    low: npt.NDArray[np.uint64]
    file: npt.NDArray[np.uint32]
    offset: npt.NDArray[np.uint64]
    length: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.high)

    def locate(self, key: str) -> tuple[int, int, int] | None:
        """File number, offset and length of a request's record."""
        high, low = np.uint64(int(key[:16], 16)), np.uint64(int(key[16:], 16))
        at = int(np.searchsorted(self.high, high))
        while at < len(self.high) and self.high[at] == high:
            if self.low[at] == low:
                return int(self.file[at]), int(self.offset[at]), int(self.length[at])
            at += 1
        return None


@dataclasses.dataclass(frozen=True)
class FileJournal:
    """A journal under a folder or a prefix."""

    url: str

    @property
    def location(self) -> Location:
        """The folder."""
        return Location.of(self.url)

    @property
    def shared(self) -> bool:
        """Object stores are seen by every node."""
        return self.location.is_remote

    def prepare(self) -> None:
        """Make the folder and prove that it can be written."""
        try:
            self.location.make_folder()
        except ConfigError as error:
            raise ConfigError(str(error).replace("output ", "journal ", 1)) from error

    def compact(self) -> None:
        """Merge small objects; nothing on a disk, where each caller appends to one file. OSError where the store raises it."""
        if self.location.is_remote:
            compact(self.location)

    def open(self) -> tuple[FileIndex, Summary]:
        """Read every file once, keeping positions and totals."""
        scan = _Scan()
        scan.take_in(self.location)
        return scan.index(), scan.summary()

    def reader(self, index: FileIndex) -> FileReader:
        """A reader over the index and what is added later."""
        return FileReader(self.location, index)

    def writer(self, name: str) -> JournalWriter:
        """A file of its own on a disk, a series of objects on an object store."""
        if self.location.is_remote:
            return ObjectWriter(self.location, name)
        return DiskWriter(self.location.join(f"{name}.jsonl"))

    def summary(self) -> Summary:
        """Totals over all files."""
        return self.open()[1]


class FileReader:
    """Finds records through the index, and those added later through a scan of the files' new ends."""

    def __init__(self, location: Location, index: FileIndex) -> None:
        self._location = location
        self._index = index
        self._late = _Scan(dict(zip(index.files, index.read, strict=True)))
        self._gone: set[str] = set()
        self._cached: dict[str, bytes] = {}

    def find(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Answers, otherwise dead letters; a later record of either kind wins over the index."""
        for _ in range(_LOOKS):
            try:
                found = {key: self._find(key) for key in keys}
                break
            except FileNotFoundError:  # another process merged the object
                self.refresh()
        else:
            raise RunFailed(f"journal {self._location.url}: objects vanish while it is read; run the same command again")
        return {key: entry for key, entry in found.items() if entry is not None}

    def refresh(self) -> None:
        """Read what was added since."""
        listed = self._late.take_in(self._location)
        self._gone = set(self._index.files) - listed

    def _find(self, key: str) -> Entry | None:
        late = self._late.place_of(key)
        if late is not None and late[0] == _ANSWER:
            return self._read(*late[1:])
        old = self._index.locate(key)
        places = [(self._index.files[old[0]], old[1], old[2])] if old and self._index.files[old[0]] not in self._gone else []
        places += [late[1:]] if late is not None else []
        candidates = [self._read(*place) for place in places]
        return next((entry for entry in candidates if entry.type == "answer"), candidates[-1] if candidates else None)

    def _read(self, name: str, offset: int, length: int) -> Entry:
        file = self._location.join(name)
        if file.is_remote:  # neighbours are asked for together
            data = self._cached.pop(name, None) or file.read_bytes()
            self._cached[name] = data
            if len(self._cached) > _CACHED_OBJECTS:
                del self._cached[next(iter(self._cached))]
            return decode(data[offset : offset + length])
        with open(file.path, "rb") as stream:
            stream.seek(offset)
            return decode(stream.read(length))


class _Scan:
    """Positions of answers and dead letters, and totals, grown file by file."""

    def __init__(self, read: dict[str, int] | None = None) -> None:
        self.read = read or {}
        self._places: dict[str, tuple[int, str, int, int]] = {}
        self._intents: dict[str, dict[str, Any]] = {}
        self._closed: set[str] = set()
        self._failures = self._damaged = 0
        self._spent_usd = 0.0

    def place_of(self, key: str) -> tuple[int, str, int, int] | None:
        return self._places.get(key)

    def take_in(self, folder: Location) -> set[str]:
        """Read what is new; objects, which are small and never grow, several at a time. Returns the names that are there."""
        files = folder.files("*.jsonl", recursive=False)
        if not folder.is_remote:
            for file in files:
                self._take_lines(file.name, _lines(file, self.read.get(file.name, 0)))
            return {file.name for file in files}
        new, vanished = [file for file in files if file.name not in self.read], False
        with ThreadPoolExecutor(_READERS) as pool:
            for file, data in zip(new, pool.map(read_if_there, new), strict=True):
                if data is None:
                    vanished = True
                else:
                    self._take_lines(file.name, _split(data, 0))
        # what vanished was merged into an object that is there by now
        return self.take_in(folder) if vanished else {file.name for file in files}

    def _take_lines(self, name: str, lines: Iterator[tuple[int, int, dict[str, Any] | None]]) -> None:
        self.read.setdefault(name, 0)
        for offset, length, head in lines:
            self.read[name] = offset + length + 1
            if head is None:
                self._damaged += 1
            elif head["type"] == "intent":
                self._intents[head["call"]] = head
            else:
                self._take_outcome(name, offset, length, head)

    def _take_outcome(self, name: str, offset: int, length: int, head: dict[str, Any]) -> None:
        if head["call"] not in self._closed:  # while objects are merged a call's record stands in two of them
            self._closed.add(head["call"])
            self._spent_usd += head["usd"]
            self._failures += head["type"] == "failure"
        if head["type"] == "failure":
            return
        rank = _ANSWER if head["type"] == "answer" else _DEAD
        held = self._places.get(head["key"])
        if held is None or rank >= held[0]:
            self._places[head["key"]] = (rank, name, offset, length)

    def summary(self) -> Summary:
        left = [head for call, head in self._intents.items() if call not in self._closed]
        answered = sum(place[0] == _ANSWER for place in self._places.values())
        again = {head["key"] for head in left if self._places.get(head["key"], (_DEAD,))[0] != _ANSWER}
        return Summary(
            answers=answered,
            failures=self._failures,
            dead=len(self._places) - answered,
            spent_usd=self._spent_usd + sum(head["usd"] for head in left),
            maybe_paid=open_intents(left),
            unanswered=len(again),
            damaged=self._damaged,
        )

    def index(self) -> FileIndex:
        names = tuple(self.read)
        number = {name: i for i, name in enumerate(names)}
        ordered = sorted(self._places.items())
        return FileIndex(
            files=names,
            read=tuple(self.read.values()),
            high=np.array([int(key[:16], 16) for key, _ in ordered], dtype=np.uint64),
            low=np.array([int(key[16:], 16) for key, _ in ordered], dtype=np.uint64),
            file=np.array([number[place[1]] for _, place in ordered], dtype=np.uint32),
            offset=np.array([place[2] for _, place in ordered], dtype=np.uint64),
            length=np.array([place[3] for _, place in ordered], dtype=np.uint32),
        )


def _lines(file: Location, start: int) -> Iterator[tuple[int, int, dict[str, Any] | None]]:
    """(offset, length, head) of each complete line from ``start``; head is None for a damaged one.

    An unfinished last line is left for the next scan: its writer may be at work, or dead.
    """
    size = file.fs.get_file_info(file.path).size or 0
    if size <= start:
        return
    with file.fs.open_input_file(file.path) as stream:
        rest, offset, at = b"", start, start
        while at < size:
            data = rest + bytes(stream.read_at(min(_READ_BYTES, size - at), at))
            at = min(at + _READ_BYTES, size)
            for place, length, head in _split(data, offset):
                yield place, length, head
                offset = place + length + 1
            rest = data[len(data) - (at - offset) :] if at > offset else b""


def _split(data: bytes, offset: int) -> Iterator[tuple[int, int, dict[str, Any] | None]]:
    """(offset, length, head) of the complete lines of ``data``, which stands at ``offset`` of its file."""
    lines = data.split(b"\n")
    lines.pop()
    for line in lines:
        yield offset, len(line), _head(line)
        offset += len(line) + 1


def _head(line: bytes) -> dict[str, Any] | None:
    try:
        head = head_of(line)
    except (json.JSONDecodeError, ValueError):
        return None
    return head if {"type", "key", "call", "usd"} <= head.keys() else None
