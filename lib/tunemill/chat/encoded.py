"""What a chat tokenizer gives: token ids with a loss weight each, and where the answers lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tunemill.chat.conversations import Message

__all__ = ["ChatTokenizer", "Encoded", "refused"]


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One conversation as tokens; all three sequences speak of the same positions."""

    input_ids: list[int]
    """Token ids, from the beginning-of-sequence token to what the template puts after the last answer."""
    loss_weights: list[float]
    """For each token: 1 in an answer and on its end-of-turn token, the prompt loss weight before answers, 0 in between."""
    answers: tuple[tuple[int, int], ...]
    """Half-open token ranges of the answers, each with its end-of-turn token as the last."""
    reason: str | None = None
    """Why this conversation cannot be encoded with certainty; then the sequences are empty."""


class ChatTokenizer(Protocol):
    """A tokenizer with its chat template, for training and for prompting. Picklable by name only: see ``load``."""

    name: str
    prompt_loss_weight: float
    vocab_size: int
    bos_id: int | None
    """Beginning of sequence, when the template puts one."""
    end_of_turn_id: int
    """What ends an answer; generation stops at it."""
    pad_id: int
    """Something to fill batches with; it always gets weight 0 and no attention."""

    def encode_batch(self, conversations: Sequence[Sequence[Message]]) -> list[Encoded]:
        """Encode conversations that end with an answer; those not certain carry a ``reason``."""

    def encode(self, messages: Sequence[Message]) -> Encoded:
        """Encode one conversation; TemplateError when it cannot be encoded with certainty."""

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids up to where the next answer begins; ``messages`` ends with a user turn."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, control tokens shown by their names."""

    def decode_text(self, ids: Sequence[int]) -> str:
        """Text of content ids exactly as the model's output would be read: control tokens left out."""

    def stripped(self, role: str, text: str) -> str:
        """``text`` as the family's template puts it: some strip spaces at the ends."""

    def is_control(self, token: int) -> bool:
        """True for tokens that never come from a text."""

    def matches_reference(self, messages: Sequence[Message], encoded: Encoded) -> bool:
        """True when the ids equal those of the genuine implementation of the template."""

    def save(self, folder: str) -> None:
        """Write the tokenizer and its chat template so that ``load(folder)`` gives the same ids."""

    def facts(self) -> Mapping[str, Any]:
        """Plain facts for the manifest: source, family, how the mask was found, a hash of the template."""


def refused(reason: str) -> Encoded:
    """The encoding of a conversation that is left out."""
    return Encoded(input_ids=[], loss_weights=[], answers=(), reason=reason)
