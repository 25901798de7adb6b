"""A stand-in for the Hugging Face hub on loopback: repositories that take commits and give their files back."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs

TOKEN = "hf_of_the_test"
COMMIT = "0" * 40


class Hub:
    """What was sent, as files by repository (``models/me/x`` or ``datasets/me/x``)."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        """Large files by hash, sent ahead of the commit that names them."""
        self.strangers: list[str] = []
        """Requests that write without the token."""
        self.url = ""

    def environment(self) -> dict[str, str]:
        """Variables under which Hugging Face's libraries speak to this hub."""
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub while the block runs."""
    hub = Hub()

    class Handler(_Handler):
        held = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    held: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and path != "/api/validate-yaml":
            self.held.strangers.append(path)
        if path == "/api/repos/create":
            asked = json.loads(body)
            kind = f"{asked.get('type') or 'model'}s"
            name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
            self.held.repositories.setdefault(f"{kind}/{name}", {})
            return self.answer({"url": f"{self.held.url}/{'' if kind == 'models' else kind + '/'}{name}"})
        if path.endswith(".git/info/lfs/objects/batch"):
            wanted = [
                {**item, "actions": {"upload": {"href": f"{self.held.url}/lfs/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": wanted})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        matched = re.fullmatch(r"/api/((?:models|datasets)/[^/]+/[^/]+)/(preupload|commit|paths-info)/[^/]+", path)
        if matched is None or matched[1] not in self.held.repositories:
            return self.missing()
        if matched[2] == "paths-info":
            asked = parse_qs(body.decode())["paths"]
            return self.answer([entry for entry in self.listed(matched[1], "") if entry["path"] in asked])
        if matched[2] == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith((".parquet", ".safetensors")) else "regular" for name in names}
            return self.answer({"files": [{"path": n, "uploadMode": modes[n], "shouldIgnore": False} for n in names]})
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.held.repositories[matched[1]][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.held.repositories[matched[1]][value["path"]] = self.held.blobs[value["oid"]]
        return self.answer({"commitUrl": f"{self.held.url}/{matched[1]}/commit/{COMMIT}", "commitOid": COMMIT})

    def do_PUT(self) -> None:
        self.held.blobs[self.path.rsplit("/", 1)[1]] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({})

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        tree = re.fullmatch(r"/api/((?:models|datasets)/[^/]+/[^/]+)/tree/[^/]+(?:/(.+))?", path)
        if tree is not None and tree[1] in self.held.repositories:
            below = self.listed(tree[1], f"{tree[2]}/" if tree[2] else "")
            return self.answer(below) if below or not tree[2] else self.missing("EntryNotFound")
        api = re.fullmatch(r"/api/((?:models|datasets)/[^/]+/[^/]+?)(/revision/[^/]+)?", path)
        if api is not None and api[1] in self.held.repositories:
            names = [{"rfilename": name} for name in self.held.repositories[api[1]]]
            return self.answer({"id": api[1].partition("/")[2], "sha": COMMIT, "siblings": names, "private": False, "tags": []})
        file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        if file is not None:
            content = self.held.repositories.get(f"{file[1] or 'models/'}{file[2]}", {}).get(file[3])
            if content is not None:
                return self.answer(content)
            return self.missing("EntryNotFound")
        return self.missing()

    do_HEAD = do_GET  # noqa: N815

    def listed(self, repository: str, prefix: str) -> list[dict[str, Any]]:
        """All files and folders whose path begins with ``prefix``."""
        files = {name: content for name, content in self.held.repositories[repository].items() if name.startswith(prefix)}
        folders = {str(parent) for name in files for parent in PurePosixPath(name).parents} - {".", prefix.rstrip("/")}
        below = [
            {"type": "directory", "path": name, "size": 0, "oid": COMMIT} for name in sorted(folders) if name.startswith(prefix)
        ]
        return below + [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in files.items()
        ]

    def missing(self, code: str = "RepoNotFound") -> None:
        """No such repository or file."""
        self.answer({"error": "not found"}, 404, {"X-Error-Code": code})

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Send JSON, or bytes as a file."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", hashlib.sha1(data).hexdigest())
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
