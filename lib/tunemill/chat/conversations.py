"""Any known form of a training row to messages, or the named reason why it cannot be one.

Messages are ``[{"role": "system" | "user" | "assistant", "content": str}, ...]``: an optional system
turn, then user and assistant in turn, the last by the assistant. Texts are taken as they are: what a
template strips is the template's business.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunemill.chat.config import ConversationRules, RowFormat

__all__ = ["COLUMNS", "ROLES", "Conversation", "Message", "has_known_columns", "read_row", "recognise"]

Message = dict[str, str]

ROLES: Mapping[str, str] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "client", "customer", "instruction"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot", "ai", "agent", "chatbot", "claude"), "assistant"
    ),
    **dict.fromkeys(("tool", "function", "function_call", "observation", "tool_call", "tool_results", "ipython"), "tool"),
}
"""Names that corpora use for the three roles; a tool's turns are known, but not trained on."""

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "sharegpt": ("conversations", "conversation"),
    "messages": ("messages",),
    "alpaca": ("instruction",),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}
"""The columns by which a form is recognised, in this order; ``prompt_completion`` needs both."""

_BLANK_LINE = "\n\n"


@dataclass(frozen=True)
class Conversation:
    """Messages, or ``reason`` when the row cannot be trained on (then ``messages`` is empty)."""

    messages: tuple[Message, ...]
    reason: str | None = None


def has_known_columns(columns: Sequence[str]) -> bool:
    """True when rows with these columns can be read."""
    return recognise(columns) is not None


def recognise(columns: Iterable[str]) -> RowFormat | None:
    """The form of rows that have these columns filled; None when it is not known."""
    present = set(columns)
    forms: tuple[RowFormat, ...] = ("sharegpt", "messages", "alpaca")
    for form in forms:
        if present.intersection(COLUMNS[form]):
            return form
    if present.issuperset(COLUMNS["prompt_completion"]) or {"prompt", "response"} <= present:
        return "prompt_completion"
    return "text" if "text" in present else None


def read_row(row: Mapping[str, Any], rules: ConversationRules) -> Conversation:
    """One row to a conversation.

    Reasons: ``no_conversation`` (no known columns or not a list of turns), ``bad_roles`` (unknown role,
    wrong order), ``tool_turn``, ``not_text`` (content is no text), ``empty_turn``, ``no_answer``.
    """
    form = recognise(name for name, value in row.items() if value is not None) if rules.format == "auto" else rules.format
    turns = _turns(row, form, rules) if form is not None else None
    if turns is None:
        return Conversation((), "no_conversation")
    messages: list[Message] = []
    for role, content in turns:
        known = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
        if known is None or known == "tool":
            return Conversation((), "bad_roles" if known is None else "tool_turn")
        text = _text(content)
        if text is None:
            return Conversation((), "not_text")
        messages.append({"role": known, "content": text})
    return _checked(messages, rules)


def _turns(row: Mapping[str, Any], form: RowFormat, rules: ConversationRules) -> list[tuple[Any, Any]] | None:
    system = next((row[name] for name in ("system", "system_prompt") if isinstance(row.get(name), str)), "")
    head = [("system", system)] if system.strip() else []
    if form in ("sharegpt", "messages"):
        names = (*COLUMNS[form], *COLUMNS["sharegpt"], *COLUMNS["messages"])
        turns = _listed(next((row[name] for name in names if row.get(name) is not None), None))
        return None if turns is None else head + turns
    if form == "alpaca":
        answer = next((row[name] for name in ("output", "response", "completion") if row.get(name) is not None), None)
        extra = row.get("input")
        request = row.get("instruction")
        if isinstance(request, str) and isinstance(extra, str) and extra.strip():
            request = f"{request}{_BLANK_LINE}{extra}"
        return [*head, ("user", request), ("assistant", answer)]
    if form == "prompt_completion":
        return [*head, ("user", row.get("prompt")), ("assistant", row.get("completion", row.get("response")))]
    task = rules.task or ("classify" if row.get("label") is not None else "generate")
    if task == "classify":
        return [*head, ("user", row.get("text")), ("assistant", _label(row.get("label")))]
    return [*head, ("user", row.get("prompt")), ("assistant", row.get("text"))]


def _listed(value: Any) -> list[tuple[Any, Any]] | None:
    """Turns as (role, content) pairs from a list of mappings; a list kept as JSON text is read first."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if not isinstance(value, Sequence) and hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return None
    turns = []
    for item in value:
        if not isinstance(item, Mapping):
            return None
        role = next((item[name] for name in ("from", "role", "speaker") if item.get(name) is not None), None)
        content = next((item[name] for name in ("value", "content", "text") if item.get(name) is not None), None)
        turns.append((role, content))
    return turns


def _text(content: Any) -> str | None:
    """A turn's text; parts as in the OpenAI form are joined when all of them are text."""
    if content is None:
        return ""
    if isinstance(content, str):
        # A lone surrogate cannot be encoded as UTF-8, so no tokenizer can take it.
        return content if content.isascii() or not any("\ud800" <= char <= "\udfff" for char in content) else None
    if not isinstance(content, Sequence) and hasattr(content, "tolist"):
        content = content.tolist()
    if isinstance(content, Sequence) and all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
        return _text("".join(part["text"] for part in content))
    return None


def _label(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, (int, float, bool)) else value


def _checked(messages: list[Message], rules: ConversationRules) -> Conversation:
    merged = _merged(messages)
    if len(merged) != len(messages) and rules.consecutive == "refuse":
        return Conversation((), "bad_roles")
    if merged and merged[0]["role"] != "system" and rules.system is not None:
        merged.insert(0, {"role": "system", "content": rules.system})
    body = merged[1:] if merged and merged[0]["role"] == "system" else merged
    if any(message["role"] != ("user", "assistant")[place % 2] for place, message in enumerate(body)):
        return Conversation((), "bad_roles")
    if body and body[-1]["role"] == "user":
        if rules.trailing_user == "refuse" or len(body) == 1:
            return Conversation((), "no_answer")
        body = body[:-1]
    if not body:
        return Conversation((), "no_answer")
    if rules.turns == "first":
        body = body[:2]
    if not all(message["content"].strip() for message in body):
        return Conversation((), "empty_turn")
    return Conversation((*merged[: len(merged) > 0 and merged[0]["role"] == "system"], *body))


def _merged(messages: list[Message]) -> list[Message]:
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1]["role"] == message["role"]:
            # An empty turn beside a full one of the same role adds nothing, so it leaves no blank lines either.
            parts = [text for text in (merged[-1]["content"], message["content"]) if text]
            merged[-1] = {"role": message["role"], "content": _BLANK_LINE.join(parts)}
        else:
            merged.append(message)
    return merged
