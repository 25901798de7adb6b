"""The mock itself: its limiters are exact, its faults repeatable, its log complete."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mock_provider import Faults, Latency, Limit, MockConfig, MockHandle, start_mock
from mock_provider.faults import draw, latency_s, pick_fault
from mock_provider.limiters import limiter_for

ONE = {"requests": 1.0, "tokens": 10.0, "input_tokens": 4.0, "output_tokens": 6.0}


def post(mock: MockHandle, text: str, **more: Any) -> tuple[int, Any]:
    """One chat completion; (status, JSON body)."""
    body = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 50, **more}
    response = httpx.post(f"{mock.url}/v1/chat/completions", json=body, headers={"authorization": "Bearer k"})
    return response.status_code, response.json()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 3), min_size=1, max_size=80), st.integers(1, 9))
def test_sliding_window_never_admits_more_in_any_window(gaps: list[float], allowed: int) -> None:
    """Whatever the arrivals, no window of any position holds more than the allowance, and none is refused below it."""
    limiter = limiter_for(Limit(rpm=allowed, window_s=5.0))
    now, admitted = 0.0, []
    for gap in gaps:
        now += gap
        inside = sum(now - moment < 5.0 for moment in admitted)
        ok = not isinstance(limiter.admit(now, ONE), str)
        assert ok == (inside < allowed)
        admitted += [now] if ok else []


def test_token_bucket_refills_evenly_and_starts_full() -> None:
    """A burst up to the capacity passes, then one call each interval."""
    limiter = limiter_for(Limit(rpm=60, kind="bucket", burst=2 / 60))
    taken = [not isinstance(limiter.admit(now, ONE), str) for now in (0.0, 0.0, 0.0, 0.9, 1.0, 1.5, 2.0)]
    assert taken == [True, True, False, False, True, False, True]


def test_reservation_is_settled_by_real_usage() -> None:
    """Tokens that were reserved and not used become free at once."""
    limiter = limiter_for(Limit(tpm=25, window_s=60))
    first, second = limiter.admit(0.0, ONE), limiter.admit(1.0, ONE)
    assert limiter.admit(2.0, ONE) == "tokens"
    assert not isinstance(first, str)
    assert not isinstance(second, str)
    limiter.settle(first, {**ONE, "tokens": 5.0})
    assert not isinstance(limiter.admit(3.0, ONE), str)
    assert limiter.wait_s(3.0, "tokens", 10.0) == pytest.approx(58.0)


def test_short_request_windows_hold_inside_the_minute() -> None:
    """Azure's way: the minute's requests may not come all at once."""
    limiter = limiter_for(Limit(rpm=60, request_window_s=10))
    taken = sum(not isinstance(limiter.admit(0.01 * i, ONE), str) for i in range(30))
    assert taken == 10
    assert not isinstance(limiter.admit(10.5, ONE), str)


def test_faults_follow_body_and_attempt_not_arrival() -> None:
    """The same call meets the same fate in every run with a seed, and about the stated share meets one."""
    faults = Faults(share={"server_error": 0.1, "cut": 0.05})
    fates = [pick_fault(faults, 1, f"body{i}", 0, i) for i in range(4000)]
    assert fates == [pick_fault(faults, 1, f"body{i}", 0, 9999 - i) for i in range(4000)]
    assert fates != [pick_fault(faults, 2, f"body{i}", 0, i) for i in range(4000)]
    assert fates.count("server_error") == pytest.approx(400, rel=0.2)
    assert fates.count("cut") == pytest.approx(200, rel=0.3)
    assert 0 < draw(0, "x", "y", 0) < 1


def test_latencies_have_their_distribution() -> None:
    """The lognormal's median and the slow tail's share come out as configured."""
    lognormal = sorted(latency_s(Latency(kind="lognormal", mean_s=2.0, sigma=0.5), 0, f"b{i}", 0) for i in range(2001))
    assert lognormal[1000] == pytest.approx(2.0, rel=0.1)
    tail = [latency_s(Latency(kind="slow_tail", mean_s=1.0, tail_share=0.1, tail_s=9.0), 0, f"b{i}", 0) for i in range(2000)]
    assert tail.count(9.0) == pytest.approx(200, rel=0.25)


def test_log_tells_what_was_paid() -> None:
    """Each request is one line with its prompt id, fate and tokens; retries of a body are counted together."""
    with start_mock(MockConfig(faults=Faults(each=("server_error", "truncated")))) as mock:
        for _ in range(3):
            try:
                post(mock, "[[p7]] hello")
            except json.JSONDecodeError:
                continue
        assert post(mock, "hello", bogus=1)[0] == 400
        records, stats = mock.records(), mock.stats()
        assert mock.paid_prompts() == {"p7": 2}
        assert list(mock.paid().values()) == [2]
    assert [r["outcome"] for r in records] == ["fault:server_error", "fault:truncated", "answered", "refused:invalid"]
    assert [r["paid"] for r in records] == [False, True, True, False]
    assert stats["paid"] == 2
    assert stats["requests"] == 4
    assert records[2]["input_tokens"] == 4
    assert records[2]["output_tokens"] > 0


def test_throttled_calls_are_told_and_not_paid() -> None:
    """Beyond the limit comes 429 with the wait, and the limit headers say what is left."""
    with start_mock(MockConfig(limits={"*": Limit(rpm=3)})) as mock:
        statuses = [post(mock, f"[[p{i}]]")[0] for i in range(5)]
        assert statuses == [200, 200, 200, 429, 429]
        assert mock.stats()["throttled"] == 2
        assert sum(mock.paid().values()) == 3


def test_answers_repeat_for_the_same_body() -> None:
    """The same request gets the same text, another one another."""
    with start_mock() as mock:
        texts = [post(mock, prompt)[1]["choices"][0]["message"]["content"] for prompt in ("a", "a", "b")]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("where", ["query", "bearer"])
def test_keys_in_the_wrong_place_are_refused(where: str) -> None:
    """Gemini's key in the URL and Azure's as bearer token are answered with an error."""
    with start_mock() as mock:
        url = f"{mock.url}/v1beta/models/m:generateContent?key=abc"
        headers = {"content-type": "application/json"}
        if where == "bearer":
            url = f"{mock.url}/openai/deployments/d/chat/completions?api-version=2024-10-21"
            headers["authorization"] = "Bearer k"
        request = urllib.request.Request(url, data=b'{"contents": []}', headers=headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert refused.value.code == 400
        refused.value.close()


async def test_slow_answers_do_not_hold_up_others() -> None:
    """Waiting costs the server nothing: 100 calls of half a second each are served together."""
    with start_mock(MockConfig(latency=Latency(mean_s=0.5))) as mock:
        limits = httpx.Limits(max_connections=400)
        async with httpx.AsyncClient(limits=limits, timeout=60, headers={"authorization": "Bearer k"}) as client:
            body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
            answers = await asyncio.gather(*(client.post(f"{mock.url}/v1/chat/completions", json=body) for _ in range(100)))
        assert {answer.status_code for answer in answers} == {200}
        assert mock.stats()["peak_in_flight"] > 20


def test_mock_ends_with_its_parent() -> None:
    """When the process that started it is gone, the server goes as well."""
    mock = start_mock()
    assert mock.process.stdin is not None
    mock.process.stdin.close()
    assert mock.process.wait(timeout=30) == 0
    mock.stop()
