"""Sending one wire request: the only place where HTTP happens.

The httpx API on aiohttp's transport (httpx's own pool scans all its connections on every request);
boto3 in threads. Third-party errors become failures here and nowhere else.
"""

from __future__ import annotations

import asyncio
import functools
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from tunemill.llm.config import ModelConfig
from tunemill.llm.providers import provider_for
from tunemill.llm.providers.failures import failure
from tunemill.llm.providers.wire import secrets_of
from tunemill.llm.request import Failure, WireRequest, WireResponse

__all__ = ["Sender"]

_CONNECT_S = 20.0


class Sender:
    """One process's connections to one model; used on one event loop."""

    def __init__(self, model: ModelConfig, most_in_flight: int) -> None:
        self._model = model
        self._secrets = {} if model.provider == "bedrock" else provider_for(model.provider, model.task).auth_headers(model)
        self._hidden = [value.encode() for value in secrets_of(model, ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"))]
        limits = httpx.Limits(max_connections=most_in_flight, max_keepalive_connections=most_in_flight, keepalive_expiry=30.0)
        self._transport = AiohttpTransport(limits=limits)
        self._timeouts = {"connect": _CONNECT_S, "read": model.timeout_s, "write": model.timeout_s, "pool": model.timeout_s}
        self._url = functools.lru_cache(64)(httpx.URL)
        self._threads = ThreadPoolExecutor(most_in_flight, thread_name_prefix="boto3") if model.provider == "bedrock" else None
        self._pool = most_in_flight

    async def send(self, wire: WireRequest) -> WireResponse | Failure:
        """The raw response, or a Failure where there was none."""
        try:
            # the transport's own timeout is per read: a server that drips for ever would hold the slot
            async with asyncio.timeout(self._model.timeout_s):
                return await (self._http(wire) if self._threads is None else self._boto3(wire))
        except TimeoutError:
            return failure("timeout", f"no answer within {self._model.timeout_s:g} s", status=None)

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.aclose()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _http(self, wire: WireRequest) -> WireResponse | Failure:
        # straight to the transport: redirects, cookies and hooks of a client cost as much as all else together
        request = httpx.Request(
            wire.method,
            self._url(wire.url),
            headers={**wire.headers, **self._secrets, "user-agent": "tunemill"},
            content=wire.body,
            extensions={"timeout": self._timeouts},
        )
        try:
            response = await self._transport.handle_async_request(request)
            try:
                body = await response.aread()
            finally:
                await response.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return _unanswered(error)
        if response.status_code >= 400:  # some servers repeat the key that they refuse
            for secret in self._hidden:
                body = body.replace(secret, b"[key]")
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers.raw}
        return WireResponse(status=response.status_code, headers=headers, body=body)

    async def _boto3(self, wire: WireRequest) -> WireResponse | Failure:
        from tunemill.llm.providers.bedrock_client import send

        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: send(self._model, wire, pool=self._pool))


def _unanswered(error: Exception) -> Failure:
    """What it means that no response came: never sent, given up waiting, or cut off (perhaps paid)."""
    what = f"{type(error).__name__}: {error}"
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return failure("not_found", what, status=None)
    if isinstance(error.__cause__, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return failure("connection", what, status=None)
    if isinstance(error.__cause__, aiohttp.ServerTimeoutError):
        return failure("timeout", what, status=None)
    return failure("bad_answer", f"the connection closed without a whole answer ({what})", status=None)
