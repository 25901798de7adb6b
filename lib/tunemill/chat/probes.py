"""Conversations on which every template is tried before a run: the cases in which templates go wrong."""

from __future__ import annotations

from collections.abc import Mapping

from tunemill.chat.conversations import Message

__all__ = ["PROBES", "conversation"]


def conversation(*texts: str, system: str | None = None) -> tuple[Message, ...]:
    """Messages from texts by user and assistant in turn."""
    head: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    body = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    return (*head, *body)


_LANGUAGES = (
    "מה השעה?",
    "השעה שלוש וחצי.",
    "ما هي عاصمة مصر؟",
    "القاهرة.",
    "안녕하세요, 잘 지내요?",
    "네, 잘 지냅니다!",
    "你好,今天天气怎么样?",
    "晴天。",
    "¿Qué tal, señor Núñez?",
    "¡Muy bien! ¿Y usted?",
    "👩🏽‍🚀🇧🇷 ok?",
    "👍🏽 sí — naïve café é",
)
_CODE = ("Sort it:\n\n    def f(x):\n\t\treturn x\n\n\n", "```python\nsorted(x)\n```\n\nDone.\n1. a\n2. b")
_SPACES = ("  lead and trail  ", "  two before, three after   ", "\n\nnew lines \n", "\n\nnew lines \n", " ", "a")

PROBES: Mapping[str, tuple[Message, ...]] = {
    "one turn": conversation("What is the capital of Peru?", "Lima."),
    "system text": conversation("Where is my parcel?", "It left Lyon this morning.", system="You are a patient clerk."),
    "several turns": conversation(
        "Hi", "Hello! What can I do?", "Two seats for Friday.", "Booked: Friday 19:30.", "Thanks", "Enjoy."
    ),
    "several turns with system text": conversation("Hi", "Yes?", "Two seats.", "Booked.", system="One sentence.\nNo prices."),
    "empty system text": conversation("Ping", "Pong", system=""),
    "languages": conversation(*_LANGUAGES, system="Antworte höflich. 礼貌地回答。"),
    "code and blank lines": conversation(*_CODE),
    "spaces at the ends": conversation(*_SPACES),
    "brackets": conversation("Is [this] <tag> a {token}? [ INST ] < s > <|x|>", "No: [INST is open, <s is too, </ s > as well."),
    "digits and marks": conversation("12345 + 67890 = ?!?", "80235.\u00a0100\u202f000 ≠ 1e5… ½"),
}
"""Named conversations; all of them end with an answer that holds text."""
