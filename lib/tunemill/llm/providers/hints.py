"""What responses say about waiting and limits: durations, Retry-After, rate-limit headers. Pure, except for a missing Date."""

from __future__ import annotations

import datetime
import email.utils
import re
import time
from collections.abc import Mapping

from tunemill.llm.request import LimitHeaders, LimitWindow

__all__ = ["duration_s", "exhausted_reset_s", "lower", "rate_limit_headers", "retry_after_s", "rfc3339_s"]

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|d|h|m|s)")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def lower(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers with lower-case names."""
    return {name.lower(): value for name, value in headers.items()}


def duration_s(text: str) -> float | None:
    """Seconds in ``6m0s``, ``12ms``, ``1h2m3.5s`` or a bare number of seconds; None where it is none of these."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    parts = _PART.findall(text)
    if not parts or "".join(value + unit for value, unit in parts) != text:
        return None
    return sum(float(value) * _UNITS[unit] for value, unit in parts)


def rfc3339_s(text: str, headers: Mapping[str, str]) -> float | None:
    """Seconds from the response's Date (or now, without one) to an RFC 3339 time; never negative."""
    try:
        moment = datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return max(0.0, moment.timestamp() - _now(headers))


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by ``retry-after-ms``, else ``retry-after`` (seconds or an HTTP date); None without either."""
    milliseconds = headers.get("retry-after-ms", "").strip()
    if _NUMBER.fullmatch(milliseconds):
        return float(milliseconds) / 1000
    text = headers.get("retry-after", "").strip()
    seconds = duration_s(text) if text else None
    if seconds is not None or not text:
        return seconds
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - _now(headers))
    except ValueError:
        return None


def rate_limit_headers(headers: Mapping[str, str], *, zero_is_absent: bool = False) -> LimitHeaders:
    """``x-ratelimit-{limit,remaining,reset}-{requests,tokens}`` of OpenAI and its kin.

    ``zero_is_absent``: Azure sends -1 or 0 for what it does not tell.
    """
    windows: dict[str, LimitWindow | None] = {}
    for kind in ("requests", "tokens"):
        limit = _count(headers.get(f"x-ratelimit-limit-{kind}"), zero_is_absent=True)
        remaining = _count(headers.get(f"x-ratelimit-remaining-{kind}"), zero_is_absent=zero_is_absent)
        reset = duration_s(headers.get(f"x-ratelimit-reset-{kind}", ""))
        told = any(value is not None for value in (limit, remaining, reset))
        windows[kind] = LimitWindow(limit=limit, remaining=remaining, reset_s=reset) if told else None
    return LimitHeaders(requests=windows["requests"], tokens=windows["tokens"], retry_after_s=retry_after_s(headers))


def exhausted_reset_s(limits: LimitHeaders) -> float | None:
    """The longest reset among the limits that have nothing left; the others' resets do not matter."""
    windows = (limits.requests, limits.tokens, limits.input_tokens, limits.output_tokens)
    resets = [w.reset_s for w in windows if w is not None and w.remaining is not None and w.remaining < 1 and w.reset_s]
    return max(resets, default=None)


def _count(text: str | None, *, zero_is_absent: bool) -> float | None:
    try:
        value = float(text) if text is not None else -1.0
    except ValueError:
        return None
    return None if value < 0 or (value == 0 and zero_is_absent) else value


def _now(headers: Mapping[str, str]) -> float:
    """The server's clock, which its absolute times refer to."""
    date = headers.get("date", "")
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError):
        return time.time()
