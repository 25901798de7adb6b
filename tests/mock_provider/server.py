"""The server: admit, decide, log, wait, answer. One event loop, no router, no access log: it must not be the bottleneck."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from mock_provider.answers import cut_to, fitting, vector, words
from mock_provider.config import Limit, MockConfig, from_json
from mock_provider.faults import latency_s, pick_fault
from mock_provider.formats import find_format
from mock_provider.formats.base import Call, Format, LimitState, Problem, Reply, tokens_in
from mock_provider.limiters import Limiter, limiter_for

__all__ = ["MockServer", "serve"]

_PROMPT_ID = re.compile(r"\[\[([\w.:/-]+)\]\]")
_ERRORS = ("server_error", "unavailable", "overloaded")
_UNPAID = (*_ERRORS, "throttle", "gateway", "error_200")
_HTML = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"


@dataclasses.dataclass(slots=True)
class Ruling:
    """What happens with one request, decided on its arrival."""

    reply: Reply
    outcome: str
    wait_s: float = 0.0
    cut: str | None = None
    paid: bool = False
    output_tokens: int = 0
    release: Any = None


class MockServer:
    """State of one server."""

    def __init__(self, config: MockConfig, log: int | None) -> None:
        self.config = config
        self.log = log
        self.limiters: dict[tuple[str, str, str], tuple[Limit, Limiter]] = {}
        self.attempts: collections.Counter[str] = collections.Counter()
        self.counts: collections.Counter[str] = collections.Counter()
        self.arrivals = 0
        self.in_flight = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Any request."""
        path = request.path
        if path.startswith("/_"):
            return await self._control(path, request)
        raw = await request.read()
        arrival, self.arrivals = self.arrivals, self.arrivals + 1
        body_hash = hashlib.blake2b(raw, digest_size=16).hexdigest()
        call, ruling = None, None
        form = find_format(path)
        if form is None:
            ruling = Ruling(
                Reply(status=404, body={"error": {"message": f"no such path {path}", "type": "not_found"}}), "no_path"
            )
        else:
            call, ruling = self._rule(form, request, raw, body_hash, arrival)
        self._record(form, call, ruling, body_hash, arrival)
        self.in_flight += 1
        self.counts["peak_in_flight"] = max(self.counts["peak_in_flight"], self.in_flight)
        try:
            if ruling.wait_s > 0:
                await asyncio.sleep(ruling.wait_s)
            if ruling.release is not None:
                ruling.release()
            return await _send(request, ruling)
        finally:
            self.in_flight -= 1

    def _rule(
        self, found: tuple[Format, str, str], request: web.BaseRequest, raw: bytes, body_hash: str, arrival: int
    ) -> tuple[Call | None, Ruling]:
        form, model, operation = found
        call = None
        try:
            key = form.key(request.headers, request.query)
            config = self.config
            if (config.need_key and not key) or (config.keys and key not in config.keys):
                raise Problem("auth", f"Incorrect API key provided: {key}.")
            try:
                body = json.loads(raw)
            except ValueError as error:
                raise Problem("invalid", "We could not parse the JSON body of your request.") from error
            call = form.parse(model, operation, request.query, body)
            if config.models and call.model not in config.models:
                raise Problem("not_found", f"The model '{call.model}' does not exist or you do not have access to it.")
            asked = call.input_tokens + call.max_tokens
            if asked > config.context_tokens:
                text = f"This model's maximum context length is {config.context_tokens} tokens, you asked for {asked}."
                raise Problem("too_long", text)
        except Problem as problem:
            return call, Ruling(form.error(problem.kind, str(problem)), f"refused:{problem.kind}")
        return call, self._admitted(form, call, key, body_hash, arrival)

    def _admitted(self, form: Format, call: Call, key: str, body_hash: str, arrival: int) -> Ruling:
        now = time.monotonic()
        config, faults = self.config, self.config.faults
        limit, limiter = self._limiter(form.name, key, call.model)
        reserved = call.input_tokens + (call.max_tokens if call.reserves_output else 0)
        amounts = {"requests": 1.0, "tokens": float(reserved), "input_tokens": float(call.input_tokens)}
        amounts["output_tokens"] = float(call.max_tokens if call.reserves_output else 0)
        ticket = limiter.admit(now, amounts) if limiter else None
        if isinstance(ticket, str) and limiter is not None and limit is not None:
            wait = limiter.wait_s(now, ticket, amounts[ticket])
            message = f"Rate limit reached for {call.model} on {ticket} per min."
            reply = form.error("throttle", message, hint=faults.hint, wait_s=wait)
            reply.headers.update(form.limit_headers(self._state(limit, limiter, now)))
            return Ruling(reply, "throttled")
        attempt = self.attempts[body_hash]
        self.attempts[body_hash] += 1
        ruling = self._answer(form, call, body_hash, attempt, arrival)
        ruling.wait_s = max(ruling.wait_s, latency_s(config.latency, config.seed, body_hash, attempt))
        if limiter is not None and limit is not None and ticket is not None:
            ruling.reply.headers.update(form.limit_headers(self._state(limit, limiter, now)))
            counted = ruling.output_tokens if call.counts_output else 0
            used = {
                "requests": 1.0,
                "tokens": float(call.input_tokens + counted) if ruling.paid else 0.0,
                "input_tokens": float(call.input_tokens) if ruling.paid else 0.0,
                "output_tokens": float(counted) if ruling.paid else 0.0,
            }
            ruling.release = lambda: limiter.settle(ticket, used)
        return ruling

    def _answer(self, form: Format, call: Call, body_hash: str, attempt: int, arrival: int) -> Ruling:
        config, faults = self.config, self.config.faults
        fault = pick_fault(faults, config.seed, body_hash, attempt, arrival)
        if fault in _UNPAID:
            return Ruling(self._unpaid(form, fault), f"fault:{fault}")
        if fault in ("empty", "blocked", "filtered") and call.operation != "embeddings":
            return Ruling(form.special(call, fault), f"fault:{fault}", paid=True)
        if call.operation == "embeddings":
            reply, tokens = form.vectors(call, [vector(text, config.dimension) for text in call.texts]), 0
        else:
            text = config.answers[min(attempt, len(config.answers) - 1)] if config.answers else None
            if text is None:
                text = words(body_hash, config.answer_tokens) if call.schema is None else fitting(call.schema)
            text, reason = cut_to(text, call.max_tokens)
            tokens = tokens_in(text)
            reply = form.answer(call, text, reason, tokens)
        ruling = Ruling(reply, "answered" if fault is None else f"fault:{fault}", paid=True, output_tokens=tokens)
        if fault == "slow_first_byte":
            ruling.wait_s = faults.slow_s
        elif fault == "timeout":
            ruling.wait_s, ruling.cut = faults.hang_s, "cut"
        elif fault is not None:
            ruling.cut = fault
        return ruling

    def _unpaid(self, form: Format, fault: str) -> Reply:
        if fault == "gateway":
            return Reply(status=502, headers={"content-type": "text/html"}, body=_HTML)
        if fault == "throttle":
            faults = self.config.faults
            return form.error("throttle", "Rate limit reached.", hint=faults.hint, wait_s=faults.wait_s)
        reply = form.error("server_error" if fault == "error_200" else fault, "The server had an error.")
        return dataclasses.replace(reply, status=200) if fault == "error_200" else reply

    def _limiter(self, provider: str, key: str, model: str) -> tuple[Limit | None, Limiter | None]:
        limit = self.config.limits.get(model, self.config.limits.get("*"))
        if limit is None:
            return None, None
        where = (provider, key, model)
        known = self.limiters.get(where)
        if known is None or known[0] != limit:
            known = self.limiters[where] = (limit, limiter_for(limit))
        return known

    def _state(self, limit: Limit, limiter: Limiter, now: float) -> LimitState:
        named = {"requests": limit.rpm, "tokens": limit.tpm, "input_tokens": limit.input_tpm, "output_tokens": limit.output_tpm}
        limits = {name: value for name, value in named.items() if value is not None}
        remaining = limiter.remaining(now)
        # as OpenAI's headers do: the time until a steady refill would be complete
        reset = {name: (value - remaining[name]) / value * limit.window_s for name, value in limits.items()}
        return LimitState(limits=limits, remaining=remaining, reset_s=reset)

    def _record(
        self, form: tuple[Format, str, str] | None, call: Call | None, ruling: Ruling, body_hash: str, arrival: int
    ) -> None:
        paid_input = call.input_tokens if call is not None and ruling.paid else 0
        self.counts["requests"] += 1
        self.counts["paid"] += ruling.paid
        self.counts[ruling.outcome] += 1
        self.counts["input_tokens"] += paid_input
        self.counts["output_tokens"] += ruling.output_tokens
        if self.log is None:
            return
        mark = _PROMPT_ID.search(" ".join(call.texts)) if call is not None else None
        line = {
            "n": arrival,
            "time": round(time.time(), 4),
            "provider": form[0].name if form else None,
            "operation": call.operation if call else None,
            "model": call.model if call else None,
            "body": body_hash,
            "prompt_id": mark.group(1) if mark else None,
            "outcome": ruling.outcome,
            "status": None if ruling.cut in ("cut", "cut_body") else ruling.reply.status,
            "paid": ruling.paid,
            "input_tokens": paid_input,
            "output_tokens": ruling.output_tokens,
        }
        os.write(self.log, (json.dumps(line) + "\n").encode())

    async def _control(self, path: str, request: web.BaseRequest) -> web.Response:
        if path == "/_config":
            self.config = from_json(await request.text())
        return web.json_response({**self.counts, "in_flight": self.in_flight})


async def _send(request: web.BaseRequest, ruling: Ruling) -> web.StreamResponse:
    body, headers = ruling.reply.body, dict(ruling.reply.headers)
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers.setdefault("content-type", "application/json")
    if ruling.cut == "cut" and request.transport is not None:
        request.transport.abort()
    elif ruling.cut == "cut_body":
        response = web.StreamResponse(status=ruling.reply.status, headers={**headers, "content-length": str(len(raw))})
        await response.prepare(request)
        await response.write(raw[: len(raw) // 2])
        if request.transport is not None:
            request.transport.close()
        return response
    elif ruling.cut == "truncated":
        raw = raw[: len(raw) * 2 // 3]
    return web.Response(status=ruling.reply.status, body=raw, headers=headers)


async def serve(config: MockConfig, *, port: int, log: int | None) -> tuple[web.ServerRunner, int]:
    """Start on loopback; returns the runner and the port."""
    mock = MockServer(config, log)
    runner = web.ServerRunner(web.Server(mock.handle, access_log=None, keepalive_timeout=75.0))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, backlog=4096)
    await site.start()
    addresses: list[Mapping[int, Any]] = runner.addresses
    return runner, int(addresses[0][1])
