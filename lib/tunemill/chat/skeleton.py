"""The layout of a chat template for one sequence of roles: where its control tokens, its own text and
the turns' texts stand, and where each answer begins and ends.

It is found by rendering the genuine template with a mark in place of each text, so a text can never
pass for a part of the template. Everything here is pure; the template comes in as a function.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tunemill.chat.conversations import Message
from tunemill.errors import TemplateError

__all__ = ["Control", "Render", "Run", "Skeleton", "build_skeleton", "mark", "marked"]


class Render(Protocol):
    """The genuine template."""

    def __call__(self, messages: Sequence[Message], *, prompt: bool = False) -> tuple[str, list[tuple[int, int]]]:
        """Text (with the opening of an answer when ``prompt``) and the character ranges it marks as generated.

        Raises TemplateError when the template refuses the messages.
        """


@dataclass(frozen=True)
class Control:
    """One control token that the template puts. ``kind`` as in :class:`Run`."""

    text: str
    kind: str


@dataclass(frozen=True)
class Run:
    """Text between two control tokens; a tokenizer must see it as one string.

    ``parts`` are literal texts or the numbers of messages. From part ``cut`` on it is the answer.
    ``kind`` speaks of the parts before: ``prompt``, ``answer`` or ``tail`` (what follows an answer's end).
    """

    parts: tuple[str | int, ...]
    kind: str
    cut: int | None = None

    def fill(self, texts: Sequence[str]) -> str:
        """The run with the turns' texts in it."""
        return "".join(part if isinstance(part, str) else texts[part] for part in self.parts)

    def head(self, texts: Sequence[str]) -> str:
        """What stands before the cut."""
        return "".join(part if isinstance(part, str) else texts[part] for part in self.parts[: self.cut])


@dataclass(frozen=True)
class Skeleton:
    """A template's layout for one sequence of roles."""

    items: tuple[Control | Run, ...]
    method: str
    """How the answers were found: ``generation`` marks or ``prefix``."""

    def fill(self, texts: Sequence[str]) -> str:
        """The rendered text."""
        return "".join(item.text if isinstance(item, Control) else item.fill(texts) for item in self.items)


def mark(place: int) -> str:
    """What stands for the text of message ``place``: private-use characters, which templates leave alone."""
    return f"\ue0f0{place}\ue0f1"


def marked(roles: Sequence[str], empty: Sequence[bool]) -> list[Message]:
    """Messages with marks for texts; empty texts stay empty, since templates may ask for that."""
    return [{"role": role, "content": "" if empty[i] else mark(i)} for i, role in enumerate(roles)]


def build_skeleton(
    render: Render, roles: Sequence[str], empty: Sequence[bool], controls: re.Pattern[str], *, prompt: bool = False
) -> Skeleton:
    """The layout for these roles. Raises TemplateError when it cannot be known with certainty."""
    messages = marked(roles, empty)
    text, generated = render(messages, prompt=prompt)
    slots = {i: _position(text, i, roles[i]) for i in range(len(roles)) if not empty[i]}
    if list(slots.values()) != sorted(slots.values()):
        raise TemplateError("the template puts the turns in another order")
    starts: dict[int, int] = {}
    method = "prefix"
    for i, role in enumerate(roles):
        if role == "assistant":
            opening, _ = render(messages[:i], prompt=True)
            starts[i], method = _start(i, text, slots[i], opening, generated)
    return Skeleton(_items(text, controls, starts, slots), method)


def _position(text: str, place: int, role: str) -> int:
    found = text.count(mark(place))
    if found != 1:
        problem = "leaves out" if found == 0 else "repeats"
        raise TemplateError(f"the template {problem} the text of turn {place + 1} ({role})")
    return text.index(mark(place))


def _start(place: int, text: str, slot: int, opening: str, generated: Sequence[tuple[int, int]]) -> tuple[int, str]:
    """Where answer ``place`` begins: right after the prompt that the model is given when it writes it (``opening``)."""
    by_prefix = len(opening) if text.startswith(opening) and len(opening) <= slot else None
    by_marks = next((start for start, stop in generated if start <= slot < stop), None)
    if by_marks is not None:
        # A prompt that opens more than the answer's header (a thinking block) is no prefix; then the marks decide.
        if by_prefix is not None and by_prefix != by_marks:
            raise TemplateError(f"the template marks answers from character {by_marks}, but its prompt ends at {by_prefix}")
        return by_marks, "generation"
    if generated:
        raise TemplateError(f"the template marks some answers, but not that of turn {place + 1}")
    if by_prefix is None:
        raise TemplateError(
            f"the prompt before turn {place + 1} is no prefix of the whole conversation and the template marks no answers, "
            "so it is not certain which tokens the model writes"
        )
    return by_prefix, "prefix"


def _items(
    text: str, controls: re.Pattern[str], starts: Mapping[int, int], slots: Mapping[int, int]
) -> tuple[Control | Run, ...]:
    """Cut the rendered text at control tokens, marks and the beginnings of answers."""
    answer_of = {start: place for place, start in starts.items()}
    items: list[Control | Run] = []
    parts: list[str | int] = []
    cut: int | None = None
    kind, open_answer = "prompt", None

    def flush() -> None:
        nonlocal parts, cut
        if parts:
            # Only text of the template alone can be called a tail; where a turn's text follows, it is a prompt.
            pure = kind != "tail" or all(isinstance(part, str) for part in parts)
            before = kind if pure and cut is None else "prompt"
            items.append(Run(tuple(parts), before, cut))
        parts, cut = [], None

    for start, piece, is_control in _pieces(text, controls, starts.values(), slots):
        if start in answer_of:
            open_answer = answer_of[start]
            if not parts:
                kind = "answer"
            else:
                cut = len(parts)
        if not is_control:
            parts.append(piece)
            continue
        in_answer = open_answer is not None
        flush()
        items.append(Control(str(piece), "answer" if in_answer else "prompt"))
        if in_answer and slots[open_answer] < start:  # type: ignore[index]
            kind, open_answer = "tail", None
        else:
            kind = "answer" if in_answer else "prompt"
    if open_answer is not None:
        raise TemplateError("no control token ends the assistant's turn, so the model could not learn to stop")
    flush()
    return tuple(items)


def _pieces(
    text: str, controls: re.Pattern[str], edges: Iterable[int], slots: Mapping[int, int]
) -> list[tuple[int, str | int, bool]]:
    """(start, literal text or message number, is control token) in order, without gaps; literals are cut at ``edges``."""
    fixed: dict[int, tuple[int, str | int, bool]] = {m.start(): (m.end(), m.group(), True) for m in controls.finditer(text)}
    fixed |= {at: (at + len(mark(place)), place, False) for place, at in slots.items()}
    bounds = sorted({0, len(text), *edges, *fixed, *(stop for stop, _, _ in fixed.values())})
    pieces: list[tuple[int, str | int, bool]] = []
    for start, stop in itertools.pairwise(bounds):
        _, piece, is_control = fixed.get(start, (stop, text[start:stop], False))
        pieces.append((start, piece, is_control))
    return pieces
