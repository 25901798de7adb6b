"""The openai and embedded providers against a real llama.cpp server."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from tunemill.llm.config import ModelConfig, Params
from tunemill.llm.embedded_server import embedded_base_url, start_server, stop_embedded
from tunemill.llm.providers import check_model, provider_for
from tunemill.llm.request import Answer, Failure, Prompt, keyed_request
from tunemill.llm.schema import schema_problem
from tunemill.llm.send import Sender

TOPICS = ("old bridges", "bread ovens", "night trains", "city parks", "jazz records", "winter coats")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server in this process."""
    server = start_server(threads=2, slots=4)
    yield server.listening_address
    del server


def model(url: str, provider: str = "embedded", **params: Any) -> ModelConfig:
    """SmolLM2 at ``url``."""
    chosen = Params(**{"max_tokens": 16, "temperature": 0.9, "top_k": 40, **params})
    return ModelConfig(name="small", provider=provider, model="smollm2-135m", base_url=url, params=chosen)  # type: ignore[arg-type]


async def ask(entry: ModelConfig, texts: tuple[str, ...], schema: Any = None) -> list[Answer | Failure]:
    """All texts at once."""
    check_model(entry, schema)
    form, sender = provider_for(entry.provider), Sender(entry, len(texts))
    wires = [keyed_request(form, entry, Prompt.of(text), schema=schema)[1] for text in texts]
    responses = await asyncio.gather(*(sender.send(wire) for wire in wires))
    await sender.close()
    return [r if isinstance(r, Failure) else form.read(r.status, r.headers, r.body) for r in responses]


async def test_openai_format_fits_a_real_server(url: str) -> None:
    """Text, finish reason and usage come from llama.cpp as from OpenAI."""
    (answer,) = await ask(model(url, "openai", stop=("\n\n",), presence_penalty=0.1), ("Name a colour.",))
    assert isinstance(answer, Answer), answer
    assert answer.text
    assert answer.finish_reason in ("stop", "length")
    assert answer.input_tokens > 3
    assert 0 < answer.output_tokens <= 16


async def test_same_request_gets_the_same_text_whatever_runs_beside_it(url: str) -> None:
    """A re-run agrees with the first run though its neighbours, their order and their number differ."""
    texts = tuple(f"Write one sentence about {topic}." for topic in TOPICS)
    together = await ask(model(url), texts)
    reversed_ = await ask(model(url), texts[::-1])
    alone = await ask(model(url), texts[2:3])
    words = [answer.text for answer in together if isinstance(answer, Answer)]
    assert len(set(words)) == len(texts)
    assert [answer.text for answer in reversed_ if isinstance(answer, Answer)] == words[::-1]
    assert [answer.text for answer in alone if isinstance(answer, Answer)] == words[2:3]


async def test_schema_holds_on_the_embedded_model(url: str) -> None:
    """llama.cpp is held to a JSON schema by grammar."""
    schema = {"type": "object", "properties": {"mood": {"type": "string", "enum": ["good", "bad"]}}, "required": ["mood"]}
    (answer,) = await ask(model(url, max_tokens=30), ("How was the film?",), schema)
    assert isinstance(answer, Answer), answer
    assert schema_problem(schema, answer.text) is None


async def test_prompt_longer_than_a_slot_is_too_long(url: str) -> None:
    """The real server's refusal of a long prompt is recognised."""
    (failure,) = await ask(model(url), ("word " * 3000,))
    assert isinstance(failure, Failure)
    assert failure.kind == "too_long"


async def test_server_that_is_not_there_is_a_connection_failure() -> None:
    """Nothing was sent, so nothing can have been paid."""
    (failure,) = await ask(model("http://127.0.0.1:9/v1"), ("x",))
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.retryable) == ("connection", True)


async def test_one_actor_serves_the_whole_run(ray_session: None) -> None:
    """The server is started once in Ray, found again by name, answers over loopback, and can be ended."""
    first = embedded_base_url("small")
    assert embedded_base_url("small") == first
    assert first.startswith("http://127.0.0.1:")
    (answer,) = await ask(dataclasses.replace(model(first), model=""), ("Hello!",))
    assert isinstance(answer, Answer), answer
    stop_embedded()
