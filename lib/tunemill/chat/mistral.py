"""Mistral's own tokenizers, by mistral-common: v1, v2, v3, v7 and later SentencePiece and tekken files.

mistral-common is the reference for the ids, but gives no mask. Its encoder handles every message by
itself, so the same pieces are laid here one by one, with their weights, and compared with its ids.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.validator import ValidationMode
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy, SpecialTokens
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from tunemill.chat.conversations import Message
from tunemill.chat.encoded import Encoded, refused
from tunemill.errors import TemplateError

__all__ = ["MistralChat"]

_BLANK_LINE = "\n\n"
_SPACE_MARK = "\u2581"
"""How SentencePiece writes a space; in a text it is the one character that does not survive (tekken keeps it)."""
_MESSAGE_TYPES = {"system": SystemMessage, "user": UserMessage, "assistant": AssistantMessage}


class MistralChat:
    """A mistral-common tokenizer file as a chat tokenizer.

    v1 writes its markers as plain text, so an ``[INST]`` inside a user's text cannot be told apart there.
    """

    def __init__(self, name: str, file: Path, *, prompt_loss_weight: float = 0.0) -> None:
        self.name = name
        self.file = file
        self.prompt_loss_weight = prompt_loss_weight
        self._reference = MistralTokenizer.from_file(str(file), mode=ValidationMode.finetuning)
        self._raw = self._reference.instruct_tokenizer.tokenizer
        self._is_sentencepiece = file.suffix != ".json"
        self.version = int(self._raw.version.value.removeprefix("v"))
        self.vocab_size = int(self._raw.n_words)
        self.bos_id: int | None = int(self._raw.bos_id)
        self.end_of_turn_id = int(self._raw.eos_id)
        pad = int(self._raw.pad_id)
        # The SentencePiece files have no padding token; padding is masked, so any known token will do.
        self.pad_id = pad if pad >= 0 else int(self._raw.unk_id)
        if self.version > 1:
            self._begin_user = self._raw.get_special_token(SpecialTokens.begin_inst.value)
            self._end_user = self._raw.get_special_token(SpecialTokens.end_inst.value)
        if self.version >= 7:
            self._begin_system = self._raw.get_special_token(SpecialTokens.begin_system.value)
            self._end_system = self._raw.get_special_token(SpecialTokens.end_system.value)

    def encode_batch(self, conversations: Sequence[Sequence[Message]]) -> list[Encoded]:
        """Encode conversations that end with an answer, each compared with mistral-common.

        Reasons: ``not_representable`` (a character is lost), ``template_differs``.
        """
        return [self._encoded(messages) for messages in conversations]

    def encode(self, messages: Sequence[Message]) -> Encoded:
        """Encode one conversation that ends with an answer; TemplateError when it is not certain."""
        encoded = self._encoded(messages)
        if encoded.reason is not None:
            raise TemplateError(f"tokenizer {self.name!r}: a conversation cannot be encoded with certainty ({encoded.reason})")
        return encoded

    def _encoded(self, messages: Sequence[Message]) -> Encoded:
        if self._is_sentencepiece and any(_SPACE_MARK in message["content"] for message in messages):
            return refused("not_representable")
        ids, answers = self._lay(messages)
        weights = [self.prompt_loss_weight] * len(ids)
        for start, stop in answers:
            weights[start:stop] = [1.0] * (stop - start)
        encoded = Encoded(input_ids=ids, loss_weights=weights, answers=tuple(answers))
        # The reference costs three times our own encoding (1 ms for a dialogue of 18 turns): cheap enough for every row.
        return encoded if self.matches_reference(messages, encoded) else refused("template_differs")

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids up to where the next answer begins."""
        return self._lay(messages)[0]

    def _lay(self, messages: Sequence[Message]) -> tuple[list[int], list[tuple[int, int]]]:
        ids = [self._raw.bos_id]
        answers: list[tuple[int, int]] = []
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        body = messages if system is None else messages[1:]
        if self.version >= 7 and system is not None:
            ids += [self._begin_system, *self._text(system), self._end_system]
            system = None
        users = [place for place, message in enumerate(body) if message["role"] == "user"]
        bearer = (users[0] if self.version == 1 else users[-1]) if users else -1
        for place, message in enumerate(body):
            content = message["content"]
            if message["role"] == "assistant":
                start = len(ids)
                ids += [*self._text(self.stripped("assistant", content)), self.end_of_turn_id]
                answers.append((start, len(ids)))
                continue
            if place == bearer and system:
                content = f"{system}{_BLANK_LINE}{content}"
            if self.version == 1:
                ids += self._text(f"[INST] {content} [/INST]")
            else:
                ids += [self._begin_user, *self._text(content), self._end_user]
        return ids, answers

    def _text(self, text: str) -> list[int]:
        return list(self._raw.encode(text, bos=False, eos=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, control tokens shown by their names."""
        parts: list[str] = []
        plain: list[int] = []
        for token in [*ids, -1]:
            if token >= 0 and not self._raw.is_special(token):
                plain.append(token)
                continue
            if plain:
                parts.append(self.decode_text(plain))
                plain = []
            if token >= 0:
                parts.append(str(self._raw.id_to_piece(token)))
        return "".join(parts)

    def decode_text(self, ids: Sequence[int]) -> str:
        """Text of content ids, control tokens left out."""
        return str(self._raw.decode(list(ids), special_token_policy=SpecialTokenPolicy.IGNORE))

    def stripped(self, role: str, text: str) -> str:
        """From v2 on, spaces at the end of an answer are left out."""
        return text.rstrip(" ") if role == "assistant" and self.version > 1 else text

    def is_control(self, token: int) -> bool:
        """True for control tokens."""
        return bool(self._raw.is_special(token))

    def matches_reference(self, messages: Sequence[Message], encoded: Encoded) -> bool:
        """True when mistral-common gives the same ids."""
        parts: list[Any] = [_MESSAGE_TYPES[message["role"]](content=message["content"]) for message in messages]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            tokens = self._reference.encode_chat_completion(ChatCompletionRequest(messages=parts)).tokens
        return list(tokens) == encoded.input_ids

    def save(self, folder: str) -> None:
        """Copy the tokenizer file under the name by which vLLM and transformers find it."""
        name = "tekken.json" if self.file.suffix == ".json" else f"tokenizer.model.{self.file.name.rsplit('.', 1)[-1]}"
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(self.file, target / name)
        except OSError as error:
            raise TemplateError(f"tokenizer {self.name!r}: cannot be saved to {folder} ({error.strerror})") from error

    def facts(self) -> Mapping[str, Any]:
        """Source and rules."""
        place = "its own turn" if self.version >= 7 else "first user turn" if self.version == 1 else "last user turn"
        return {
            "name": self.name,
            "family": f"mistral v{self.version}",
            "source": f"mistral-common {self.file.name}",
            "mask": "pieces laid one by one, equal to mistral-common's ids",
            "system": place,
            "vocab_size": self.vocab_size,
            "plain_text_markers": self.version == 1,
        }
