"""The length limit: keep, shorten by whole exchanges, or leave out. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tunemill.chat.conversations import Message
from tunemill.chat.encoded import ChatTokenizer, Encoded

__all__ = ["fit"]


def fit(
    tokenizer: ChatTokenizer,
    messages: Sequence[Message],
    encoded: Encoded,
    max_length: int,
    too_long: Literal["drop", "truncate"],
) -> tuple[Sequence[Message], Encoded] | None:
    """The messages and their encoding within ``max_length`` tokens, or None when they do not fit.

    ``truncate`` leaves out whole exchanges at the end, so every example still ends with a complete
    answer and its end-of-turn token; nothing is ever cut inside a turn. The rest is encoded anew, since
    some families put the system text into the last user turn.
    """
    if len(encoded.input_ids) <= max_length:
        return messages, encoded
    if too_long == "drop":
        return None
    ends = [place + 1 for place, message in enumerate(messages) if message["role"] == "assistant"]
    for end, (_, stop) in reversed(list(zip(ends[:-1], encoded.answers[:-1], strict=True))):
        # The estimate may be short by the system text, never long, so it only saves tries.
        if stop > max_length:
            continue
        shorter = tokenizer.encode_batch([messages[:end]])[0]
        if shorter.reason is None and len(shorter.input_ids) <= max_length:
            return messages[:end], shorter
    return None
