"""Gemma 2, Gemma 3, SmolLM2 and Mistral Nemo on their real tokenizer files: ids equal to the published formats."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from tokenizers import Tokenizer

from chat.toy import TRICKY, conversations, real_conversations
from real_tokenizers import tokenizer_folder
from tunemill.chat.conversations import Message
from tunemill.chat.probes import conversation
from tunemill.chat.proof import prove
from tunemill.chat.tokenizer import load
from tunemill.embedded import EMBEDDED_MODEL, resolve_model

FAMILIES = ("gemma2", "gemma3", "smollm2")
SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


def folder(name: str) -> str:
    return resolve_model(EMBEDDED_MODEL) if name == "smollm2" else str(tokenizer_folder(name))


@functools.cache
def ours(name: str) -> Any:
    return load(folder(name))


@functools.cache
def nemo_reference() -> Any:
    return load("mistral-common/tekken_240718.json")


@functools.cache
def genuine(name: str) -> Tokenizer:
    """The tokenizer file alone, without transformers and without our code."""
    return Tokenizer.from_file(f"{folder(name)}/tokenizer.json")


def written(name: str, messages: tuple[Message, ...]) -> str:
    """The published format, written out by hand."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    body = list(messages if system is None else messages[1:])
    if name == "smollm2":
        default = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
        turns = [("system", default if system is None else system), *((m["role"], m["content"]) for m in body)]
        return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    turns = [("model" if m["role"] == "assistant" else "user", m["content"].strip()) for m in body]
    if system and name == "gemma3":
        turns[0] = ("user", f"{system}\n\n{turns[0][1]}")
    elif system:
        turns[0] = ("user", f"{system}\n\n{body[0]['content']}".strip())
    if system == "" and name == "gemma3":
        turns[0] = ("user", f"\n\n{turns[0][1]}")
    return "<bos>" + "".join(f"<start_of_turn>{role}\n{text}<end_of_turn>\n" for role, text in turns)


def whole_ids(name: str, text: str) -> list[int]:
    return list(genuine(name).encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_of_real_conversations_equal_the_published_format(name: str) -> None:
    """Two hundred conversations of real prose equal the format written by hand and tokenised as a whole."""
    rows = [tuple(_unspaced(m) for m in row) for row in real_conversations(200)]
    for messages, encoded in zip(rows, ours(name).encode_batch(rows), strict=True):
        assert encoded.reason is None
        assert encoded.input_ids == whole_ids(name, written(name, messages))


def _unspaced(message: Message) -> Message:
    """Without white space before an answer: SmolLM2 would merge it with the prompt (tested by itself)."""
    return {**message, "content": message["content"].lstrip()} if message["role"] == "assistant" else message


@pytest.mark.parametrize("name", FAMILIES)
@SETTINGS
@given(messages=conversations(tricky=False))
def test_ids_of_any_conversation_equal_the_published_format(name: str, messages: tuple[Message, ...]) -> None:
    """Any Unicode, brackets, spaces and empty system texts equal the published format tokenised as a whole."""
    messages = tuple(_unspaced(message) for message in messages)
    encoded = ours(name).encode(messages)
    assert encoded.input_ids == whole_ids(name, written(name, messages))


@pytest.mark.parametrize("name", FAMILIES)
@SETTINGS
@given(messages=conversations())
def test_injected_control_tokens_stay_text(name: str, messages: tuple[Message, ...]) -> None:
    """Whatever stands in the texts, the control tokens are the template's, and all text decodes back."""
    tokenizer = ours(name)
    encoded = tokenizer.encode(messages)
    harmless = tuple({**m, "content": "x" if m["content"] else ""} for m in messages)
    assert [t for t in encoded.input_ids if tokenizer.is_control(t)] == [
        t for t in tokenizer.encode(harmless).input_ids if tokenizer.is_control(t)
    ]
    assert tokenizer.decode(encoded.input_ids) == written(name, messages)


@pytest.mark.parametrize("name", FAMILIES)
@SETTINGS
@given(messages=conversations())
def test_mask_covers_exactly_the_answers(name: str, messages: tuple[Message, ...]) -> None:
    """Trained tokens decode to the answers and their ends; the prompt before the last is what the model is given."""
    tokenizer = ours(name)
    encoded = tokenizer.encode(messages)
    texts = [m["content"] if name == "smollm2" else m["content"].strip() for m in messages if m["role"] == "assistant"]
    end = "<|im_end|>" if name == "smollm2" else "<end_of_turn>"
    assert [tokenizer.decode(encoded.input_ids[a:b]) for a, b in encoded.answers] == [text + end for text in texts]
    assert sum(encoded.loss_weights) == sum(stop - start for start, stop in encoded.answers)
    assert tokenizer.encode_prompt(messages[:-1]) == encoded.input_ids[: encoded.answers[-1][0]]


@pytest.mark.parametrize("name", [*FAMILIES, "mistral_nemo"])
def test_proof_holds(name: str) -> None:
    """Every check of the template proof passes on the real files."""
    assert len(prove(ours(name), real_conversations(20))) == 10


@pytest.mark.parametrize("name", FAMILIES)
def test_control_tokens_have_the_published_ids(name: str) -> None:
    """Begin, header and end are the ids that the model cards give."""
    first, end = {"gemma2": ([2, 106], 107), "gemma3": ([2, 105], 106), "smollm2": ([1], 2)}[name]
    ids = ours(name).encode(conversation("a", "b")).input_ids
    assert ids[: len(first)] == first
    assert ours(name).end_of_turn_id == end
    assert ids[-2] == end


def test_answer_that_begins_with_white_space_follows_the_prompt_as_the_model_sees_it() -> None:
    """SmolLM2 does not trim: a leading blank line must not merge into the prompt's last token."""
    tokenizer = ours("smollm2")
    encoded = tokenizer.encode(conversation("a", "\n\nb"))
    start, stop = encoded.answers[0]
    assert encoded.input_ids[:start] == tokenizer.encode_prompt(conversation("a"))
    assert tokenizer.decode(encoded.input_ids[start:stop]) == "\n\nb<|im_end|>"
    assert encoded.input_ids != whole_ids("smollm2", written("smollm2", conversation("a", "\n\nb")))


@SETTINGS
@given(messages=conversations())
def test_mistral_nemo_from_its_hub_files_equals_mistral_common(messages: tuple[Message, ...]) -> None:
    """The Hugging Face files of Nemo, whose template loses the system text in training, give mistral-common's ids."""
    assert ours("mistral_nemo").encode(messages).input_ids == nemo_reference().encode(messages).input_ids


@pytest.mark.parametrize(("name", "text"), [("gemma2", "\u2581"), ("smollm2", "\U00040000"), ("smollm2", "\x04")])
def test_a_character_that_the_vocabulary_lacks_is_refused(name: str, text: str) -> None:
    """Gemma reads U+2581 as a space and SmolLM2 lacks some bytes: such rows are left out by name, not changed silently."""
    encoded = ours(name).encode_batch([conversation("a", f"b{text}"), conversation("a", "b")])
    assert [item.reason for item in encoded] == ["not_representable", None]


def test_every_control_name_is_tried() -> None:
    """The injection tests know the control tokens of each family."""
    named = {name for family in FAMILIES for name in _control_names(family)}
    assert named <= set(TRICKY)


def _control_names(name: str) -> set[str]:
    tokenizer = ours(name)
    ids = tokenizer.encode(conversation("a", "b", system="c")).input_ids
    return {tokenizer.decode([token]) for token in ids if tokenizer.is_control(token)}
