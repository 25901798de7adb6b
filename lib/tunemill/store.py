"""Where a run's files live, and how a stage's output becomes final.

A stage writes its files under names that carry its attempt, then commits them by writing
``manifest.json`` last. Readers take the manifest's list, so a half-written attempt is invisible
and a re-run replaces it. Nothing relies on rename, so object stores work like local disks.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import hashlib
import importlib.metadata
import json
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import pyarrow.fs as pafs

from tunemill.config import difference, fingerprint
from tunemill.errors import ConfigError, DataError, ResumeRefused, RunFailed

__all__ = ["Location", "Manifest", "StageStore", "content_fingerprint", "new_attempt", "typed_cwd"]

_SHIPPED_FOLDER = "/working_dir_files/"
_REMOTE = ("s3://", "gs://", "gcs://")
_SAMPLED_BYTES = 1 << 20


def typed_cwd() -> str:
    """The folder in which the user typed the command.

    Under ``ray job submit --working-dir .`` the job runs in a copy of that folder: TUNEMILL_CWD names
    the original (``tunemill submit`` sets it); without it, the submitting command is looked up among
    this machine's processes.
    """
    named = os.environ.get("TUNEMILL_CWD")
    here = os.getcwd()
    if named or _SHIPPED_FOLDER not in here:
        return named or here
    return _submitter_cwd() or here


@functools.cache
def _submitter_cwd() -> str | None:
    import psutil

    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if "submit" in words and "job" in words and any(os.path.basename(word) == "ray" for word in words):
                return str(process.cwd())
        except psutil.Error:
            continue
    return None


@dataclasses.dataclass(frozen=True)
class Location:
    """A file or folder, local or on an object store. Picklable; the filesystem opens on first use."""

    url: str

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Location:
        """A location from what the user wrote; relative paths start where the command was typed."""
        text = os.fspath(path)
        return cls(text.rstrip("/")) if text.startswith(_REMOTE) else cls(os.path.normpath(os.path.join(typed_cwd(), text)))

    @property
    def is_remote(self) -> bool:
        """True on an object store, where there is no append and no rename."""
        return self.url.startswith(_REMOTE)

    @cached_property
    def _parts(self) -> tuple[pafs.FileSystem, str]:
        if not self.is_remote:
            return pafs.LocalFileSystem(), self.url
        bucket, _, rest = self.url.split("://", 1)[1].partition("/")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if self.url.startswith("s3://"):
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
            options: dict[str, Any] = {"endpoint_override": endpoint} if endpoint else {}
            # an object that fits into one part is one request instead of three
            return pafs.S3FileSystem(region=region, allow_delayed_open=True, **options), f"{bucket}/{rest}".rstrip("/")
        return pafs.GcsFileSystem(), f"{bucket}/{rest}".rstrip("/")

    @property
    def fs(self) -> pafs.FileSystem:
        """The pyarrow filesystem of this location."""
        return self._parts[0]

    @property
    def path(self) -> str:
        """The path as :attr:`fs` understands it."""
        return self._parts[1]

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.url.rstrip("/").rsplit("/", 1)[-1]

    def join(self, *parts: str) -> Location:
        """A location beneath this one."""
        return Location("/".join([self.url.rstrip("/"), *parts]))

    def exists(self) -> bool:
        """True where a file or a folder stands."""
        return bool(self.fs.get_file_info(self.path).type != pafs.FileType.NotFound)

    def read_bytes(self) -> bytes:
        """The whole file; FileNotFoundError when there is none."""
        with self.fs.open_input_file(self.path) as file:  # a stream would fetch 256 kB at a time
            return bytes(file.read())

    def read_text(self) -> str:
        """The whole file as UTF-8."""
        return self.read_bytes().decode("utf-8")

    def write_bytes(self, data: bytes) -> None:
        """Write the whole file, making its folder; durable (fsync) on a local disk."""
        if self.is_remote:
            with self.fs.open_output_stream(self.path) as stream:
                stream.write(data)
            return
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        aside = f"{self.path}.{uuid.uuid4().hex[:8]}.part"
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self.path)

    def write_text(self, text: str) -> None:
        """:meth:`write_bytes` of UTF-8."""
        self.write_bytes(text.encode("utf-8"))

    def make_folder(self) -> None:
        """Make the folder and prove that it can be written; ConfigError otherwise."""
        try:
            self.fs.create_dir(self.path, recursive=True)
            probe = self.join(f".writable-{uuid.uuid4().hex[:8]}")
            with probe.fs.open_output_stream(probe.path) as stream:
                stream.write(b"")
            probe.delete()
        except OSError as error:
            reason = error.strerror or str(error).split(". Detail")[0]
            raise ConfigError(f"output {self.url}: cannot be written ({reason}); choose a folder that can") from error

    def delete(self) -> None:
        """Remove the file or folder if it is there."""
        info = self.fs.get_file_info(self.path)
        if info.type == pafs.FileType.Directory:
            self.fs.delete_dir(self.path)
        elif info.type == pafs.FileType.File:
            self.fs.delete_file(self.path)

    def files(self, pattern: str = "*", *, recursive: bool = True) -> list[Location]:
        """The files beneath this folder whose name matches, sorted by path; empty when it is missing."""
        selector = pafs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
        prefix = self.url[: len(self.url) - len(self.path)] if not self.is_remote else self.url.split("://")[0] + "://"
        found = (info for info in self.fs.get_file_info(selector) if info.type == pafs.FileType.File)
        return [
            Location(prefix + info.path)
            for info in sorted(found, key=lambda i: i.path)
            if fnmatch.fnmatch(info.base_name, pattern)
        ]

    def expand(self) -> list[Location]:
        """The input files this names: one file, all files of a folder, or a glob. DataError when none."""
        if any(mark in self.url for mark in "*?["):
            fixed = self.url[: min(self.url.find(mark) for mark in "*?[" if mark in self.url)].rsplit("/", 1)[0]
            found = [f for f in Location(fixed).files() if fnmatch.fnmatch(f.url, self.url)]
        else:
            kind = self.fs.get_file_info(self.path).type
            found = [self] if kind == pafs.FileType.File else self.files() if kind == pafs.FileType.Directory else []
            found = [f for f in found if not f.name.startswith((".", "_"))]
        if not found:
            raise DataError(f"input {self.url}: no such file, folder or glob")
        return found


def content_fingerprint(files: Iterable[Location]) -> str:
    """A hash of the files' names, sizes and content (of large files the first and last MiB)."""
    digest = hashlib.blake2b(digest_size=12)
    for file in files:
        info = file.fs.get_file_info(file.path)
        digest.update(f"{file.name}:{info.size};".encode())
        with file.fs.open_input_file(file.path) as stream:
            digest.update(stream.read(_SAMPLED_BYTES))
            if info.size > 2 * _SAMPLED_BYTES:
                stream.seek(info.size - _SAMPLED_BYTES)
            digest.update(stream.read(_SAMPLED_BYTES))
    return digest.hexdigest()


def new_attempt() -> str:
    """A name for one attempt at a stage; it begins every file that the attempt writes."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:6]}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished stage says of itself; written last, as ``manifest.json``."""

    stage: str
    config: dict[str, Any]
    config_fingerprint: str
    input: dict[str, Any]
    rows_in: int
    rows_kept: int
    rows_dropped: dict[str, int]
    files: dict[str, list[str]]
    seconds: float
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    attempt: str = ""
    created_at: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def output_fingerprint(self) -> str:
        """Changes whenever what the stage yields may have changed."""
        return fingerprint([self.stage, self.config_fingerprint, self.input, self.rows_kept, self.rows_dropped])


@dataclasses.dataclass(frozen=True)
class StageStore:
    """The folder of one stage: ``RUN/<stage>/`` in a run, ``DIR/`` for a stage called alone."""

    folder: Location

    def read_manifest(self) -> Manifest | None:
        """The manifest of the finished stage, or None when it never finished."""
        location = self.folder.join("manifest.json")
        try:
            values = json.loads(location.read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DataError(f"{location.url}: not valid JSON; delete it to make the stage again") from error
        known = {field.name for field in dataclasses.fields(Manifest)}
        return Manifest(**{key: value for key, value in values.items() if key in known})

    def matches(self, config: Mapping[str, Any], input_: Mapping[str, Any]) -> bool:
        """True when the stage finished with exactly this configuration and input.

        ``config`` holds the non-operational values (``essential(config)``).
        """
        manifest = self.read_manifest()
        return manifest is not None and manifest.config == config and manifest.input.get("fingerprint") == input_["fingerprint"]

    def refuse_mismatch(self, config: Mapping[str, Any], input_: Mapping[str, Any]) -> None:
        """Raise ResumeRefused, showing what differs, when the stage finished with something else."""
        manifest = self.read_manifest()
        if manifest is None or self.matches(config, input_):
            return
        lines = difference(manifest.config, dict(config))
        if manifest.input.get("fingerprint") != input_["fingerprint"]:
            lines += [f"input.{line}" for line in difference(manifest.input, dict(input_))]
        raise ResumeRefused(
            f"{self.folder.url}: finished with other settings ({'; '.join(lines)}); "
            "add --overwrite to replace it, or choose another output"
        )

    def committed(self, kind: str) -> list[Location]:
        """The committed files of one kind (``data``, ``dropped``, ``pairs``, ...), in row order."""
        manifest = self.read_manifest()
        return [self.folder.join(name) for name in manifest.files.get(kind, [])] if manifest else []

    def commit(self, manifest: Manifest) -> Manifest:
        """Check that the counts add up, write the manifest, then delete files of other attempts."""
        dropped = sum(manifest.rows_dropped.values())
        if manifest.rows_in != manifest.rows_kept + dropped:
            raise RunFailed(
                f"{manifest.stage}: {manifest.rows_in} rows in, but {manifest.rows_kept} kept and {dropped} dropped; "
                "rows were lost or doubled, so nothing was committed"
            )
        stamped = dataclasses.replace(
            manifest, created_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), versions=_versions()
        )
        text = json.dumps(dataclasses.asdict(stamped), ensure_ascii=False, indent=1, default=str)
        self.folder.join("manifest.json").write_text(text)
        self.clean(stamped.files)
        return stamped

    def clean(self, keep: Mapping[str, list[str]] | None = None) -> None:
        """Delete the files that no manifest lists, in the folders that hold listed kinds of files."""
        listed = keep if keep is not None else (m.files if (m := self.read_manifest()) else {})
        wanted = {self.folder.join(name).url for names in listed.values() for name in names}
        for kind in {"data", "dropped", "pairs", "predictions", *listed}:
            for file in self.folder.join(kind).files(recursive=False):
                if file.url not in wanted:
                    file.delete()


def _versions() -> dict[str, str]:
    names = (
        "tunemill",
        "ray",
        "pyarrow",
        "numpy",
        "torch",
        "transformers",
        "peft",
        "sentence-transformers",
        "faiss-cpu",
        "mistral-common",
    )
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
