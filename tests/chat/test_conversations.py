"""Rows of every known form become the same messages, or are left out with a named reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunemill.chat.config import ConversationRules
from tunemill.chat.conversations import read_row, recognise
from tunemill.chat.probes import conversation

RULES = ConversationRules()


def turns(*pairs: tuple[str, Any]) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": text} for role, text in pairs]}


@pytest.mark.parametrize(
    "row",
    [
        turns(("human", "Q"), ("gpt", "A")),
        turns(("user", "Q"), ("chatgpt", "A")),
        turns(("Human", "Q"), ("bing", "A")),
        {"conversations": json.dumps([{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}])},
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}, {"role": "model", "content": "A"}]},
        {"instruction": "Q", "input": "", "output": "A"},
        {"prompt": "Q", "completion": "A"},
        {"prompt": "Q", "response": "A"},
        {"text": "Q", "label": "A"},
        {"prompt": "Q", "text": "A", "label": None},
    ],
)
def test_every_form_gives_the_same_messages(row: dict[str, Any]) -> None:
    """ShareGPT, messages, alpaca, prompt/completion and text rows become user and assistant turns."""
    assert read_row(row, RULES).messages == conversation("Q", "A")


def test_system_text_comes_from_a_turn_a_column_or_the_configuration() -> None:
    """A row's own system text wins over the configured one."""
    expected = conversation("Q", "A", system="S")
    assert read_row(turns(("system", "S"), ("human", "Q"), ("gpt", "A")), RULES).messages == expected
    assert read_row({**turns(("human", "Q"), ("gpt", "A")), "system": "S"}, RULES).messages == expected
    assert read_row({"prompt": "Q", "completion": "A"}, ConversationRules(system="S")).messages == expected
    assert read_row({"instruction": "Q", "output": "A", "system": "S"}, ConversationRules(system="other")).messages == expected


def test_alpaca_input_follows_the_instruction_after_a_blank_line() -> None:
    """The input column belongs to the question."""
    assert read_row({"instruction": "Q", "input": "I", "output": "A"}, RULES).messages == conversation("Q\n\nI", "A")


def test_task_decides_what_text_rows_teach() -> None:
    """classify answers with the label, generate with the text; numbers become their plain spelling."""
    row = {"prompt": "P", "text": "T", "label": 1.0}
    assert read_row(row, ConversationRules(task="classify")).messages == conversation("T", "1")
    assert read_row(row, ConversationRules(task="generate")).messages == conversation("P", "T")
    assert read_row(row, RULES).messages == conversation("T", "1")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"other": "x"}, "no_conversation"),
        ({"conversations": "not json"}, "no_conversation"),
        ({"conversations": []}, "no_conversation"),
        ({"conversations": ["x"]}, "no_conversation"),
        (turns(("human", "Q"), ("wizard", "A")), "bad_roles"),
        (turns(("gpt", "A"), ("human", "Q"), ("gpt", "A")), "bad_roles"),
        (turns(("human", "Q"), ("gpt", "A"), ("system", "S"), ("human", "Q"), ("gpt", "A")), "bad_roles"),
        (turns(("human", "Q"), ("tool", "T"), ("gpt", "A")), "tool_turn"),
        (turns(("human", "Q"), ("gpt", 7)), "not_text"),
        (turns(("human", "Q"), ("gpt", "\ud800")), "not_text"),
        (turns(("human", "Q"), ("gpt", "  \n")), "empty_turn"),
        (turns(("human", ""), ("gpt", "A")), "empty_turn"),
        (turns(("human", "Q"), ("gpt", None)), "empty_turn"),
        (turns(("human", "Q")), "no_answer"),
        (turns(("system", "S")), "no_answer"),
        ({"text": "Q", "label": ""}, "empty_turn"),
    ],
)
def test_rows_that_cannot_be_trained_on_have_a_reason(row: dict[str, Any], reason: str) -> None:
    """Each fault has its own name."""
    assert read_row(row, RULES).reason == reason
    assert read_row(row, RULES).messages == ()


def test_consecutive_turns_are_merged_or_refused() -> None:
    """Turns of one role in a row join with a blank line, as Mistral's own tokenizer joins them, unless refused."""
    row = turns(("human", "a"), ("human", "b"), ("gpt", "c"), ("gpt", ""))
    assert read_row(row, RULES).messages == conversation("a\n\nb", "c")
    assert read_row(row, ConversationRules(consecutive="refuse")).reason == "bad_roles"


def test_a_last_question_without_answer_is_cut_or_refused() -> None:
    """The rest of the conversation stays by default."""
    row = turns(("human", "a"), ("gpt", "b"), ("human", "c"))
    assert read_row(row, RULES).messages == conversation("a", "b")
    assert read_row(row, ConversationRules(trailing_user="refuse")).reason == "no_answer"


def test_first_turns_keeps_one_exchange() -> None:
    """turns: first ends after the first answer and keeps the system text; faults further on do not matter to it."""
    row = turns(("system", "S"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", ""))
    assert read_row(row, ConversationRules(turns="first")).messages == conversation("a", "b", system="S")
    assert read_row(row, RULES).reason == "empty_turn"


def test_texts_are_taken_as_they_are() -> None:
    """No stripping and no normalisation: that is the template's business."""
    assert read_row(turns(("human", "  e\u0301 "), ("gpt", "\tA ")), RULES).messages == conversation("  e\u0301 ", "\tA ")


def test_columns_tell_the_form() -> None:
    """Conversations win over text that an earlier stage added."""
    assert recognise(["id", "conversations", "text"]) == "sharegpt"
    assert recognise(["prompt", "completion", "text"]) == "prompt_completion"
    assert recognise(["id", "prompt", "text", "label"]) == "text"
    assert recognise(["id", "body"]) is None
