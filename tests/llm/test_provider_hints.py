"""Durations and limit headers, in every spelling that providers use."""

from __future__ import annotations

import pytest

from tunemill.llm.providers import hints, provider_for
from tunemill.llm.request import LimitHeaders, LimitWindow


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("12ms", 0.012),
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("1h2m3.5s", 3723.5),
        ("1d", 86400.0),
        ("750µs", 0.00075),
        ("59.7", 59.7),
        ("0s", 0.0),
        ("", None),
        ("soon", None),
        ("6m0", None),
        ("-1s", None),
    ],
)
def test_durations_sum_their_units(text: str, seconds: float | None) -> None:
    """Every unit counts; what is no duration is no wait."""
    assert hints.duration_s(text) == (None if seconds is None else pytest.approx(seconds))


def test_openai_headers_give_both_limits() -> None:
    """Requests and tokens each have their limit, what is left, and the time until it is whole again."""
    headers = {
        "X-RateLimit-Limit-Requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    limits = provider_for("openai").limits(headers)
    assert limits.requests == LimitWindow(limit=60, remaining=59, reset_s=1.0)
    assert limits.tokens == LimitWindow(limit=150000, remaining=0, reset_s=360.0)


def test_azure_minus_one_and_zero_are_absent() -> None:
    """Azure's placeholders are not mistaken for an exhausted limit."""
    headers = {"x-ratelimit-limit-requests": "-1", "x-ratelimit-remaining-requests": "0", "x-ratelimit-remaining-tokens": "9000"}
    limits = provider_for("azure").limits(headers)
    assert limits.requests is None
    assert limits.tokens == LimitWindow(remaining=9000)


def test_anthropic_resets_are_moments_on_the_servers_clock() -> None:
    """RFC 3339 times count from the response's Date, so that a wrong local clock does no harm."""
    headers = {
        "date": "Fri, 20 Nov 2026 12:00:00 GMT",
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "49",
        "anthropic-ratelimit-requests-reset": "2026-11-20T12:00:05Z",
        "anthropic-ratelimit-output-tokens-limit": "8000",
        "anthropic-ratelimit-output-tokens-remaining": "0",
        "anthropic-ratelimit-output-tokens-reset": "2026-11-20T13:01:00+01:00",
    }
    limits = provider_for("anthropic").limits(headers)
    assert limits.requests == LimitWindow(limit=50, remaining=49, reset_s=5.0)
    assert limits.output_tokens == LimitWindow(limit=8000, remaining=0, reset_s=60.0)
    assert limits.input_tokens is None
    assert hints.exhausted_reset_s(limits) == 60.0


def test_nothing_said_is_nothing_known() -> None:
    """Servers without limit headers yield empty limits, and broken ones do not raise."""
    assert provider_for("bedrock").limits({}) == LimitHeaders()
    assert provider_for("openai").limits({"x-ratelimit-limit-requests": "many", "retry-after": "later"}) == LimitHeaders()
