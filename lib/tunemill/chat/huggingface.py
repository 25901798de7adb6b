"""Tokenizers of Hugging Face models (a hub name or a folder) with the Jinja template they carry.

Ids are built from pieces: control tokens only where the template puts them, every stretch of text
between two of them as one string in which nothing is taken for a control token. Each conversation is
compared with the genuine template, rendered and tokenised as a whole.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunemill.chat.conversations import Message
from tunemill.chat.encoded import Encoded, refused
from tunemill.chat.families import Family, find_family
from tunemill.chat.skeleton import Control, Run, Skeleton, build_skeleton
from tunemill.chat.template import inner_tokenizer, renderer, template_of
from tunemill.errors import TemplateError

__all__ = ["HuggingFaceChat"]

_PLACES = {"native": "the template's own place", "first_user": "first user turn", "last_user": "last user turn"}


@dataclass(frozen=True)
class _Plan:
    """One conversation, laid out."""

    skeleton: Skeleton
    texts: tuple[str, ...]
    text: str
    faithful: bool
    """True when the genuine template renders exactly this text."""

    def runs(self) -> list[str]:
        """The texts between control tokens."""
        return [item.fill(self.texts) for item in self.skeleton.items if isinstance(item, Run)]


class HuggingFaceChat:
    """A transformers tokenizer as a chat tokenizer."""

    def __init__(self, name: str, tokenizer: Any, *, prompt_loss_weight: float = 0.0) -> None:
        self.name = name
        self.prompt_loss_weight = prompt_loss_weight
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise TemplateError(f"tokenizer {name!r}: has no tokenizer.json, so its ids cannot be shown to be right")
        self._backend = backend
        # The only normalisation of chat models' tokenizers that changes a text as it is decoded.
        self._composes = "NFC(" in repr(backend.normalizer)
        backend.no_truncation()
        backend.no_padding()
        added = backend.get_added_tokens_decoder()
        special = {token.content for token in added.values() if token.special}
        self._template, self._own_template = template_of(name, tokenizer, special)
        # Some templates use added tokens that are not flagged special (<think>, <|user|>): to us they are control tokens too.
        named = {t.content for t in added.values() if not t.special and t.content.strip() and t.content in self._template}
        if named:
            backend.add_special_tokens([t for t in added.values() if t.content in named])
        self._controls = {token.content: token_id for token_id, token in added.items() if token.content in special | named}
        self._inner = inner_tokenizer(backend)
        self._control_ids = frozenset(self._controls.values())
        longest_first = sorted(self._controls, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._render = renderer(tokenizer, self._template)
        self._skeletons: dict[tuple[tuple[str, ...], tuple[bool, ...], bool], Skeleton] = {}
        self._heads: dict[str, list[int]] = {}
        try:
            self.family: Family = find_family(self._render, special)
            self._method = self._layout([("user", "a"), ("assistant", "b")], prompt=False).method
        except TemplateError as error:
            raise TemplateError(f"tokenizer {name!r}: {error}") from error
        self.vocab_size = int(backend.get_vocab_size(with_added_tokens=True))
        first = self.encode_prompt([{"role": "user", "content": "a"}])[0]
        self.bos_id: int | None = first if first == tokenizer.bos_token_id else None
        self.end_of_turn_id = self._end_of_turn()
        self.pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_of_turn_id)

    def _end_of_turn(self) -> int:
        encoded = self.encode([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        return encoded.input_ids[encoded.answers[-1][1] - 1]

    def encode_batch(self, conversations: Sequence[Sequence[Message]]) -> list[Encoded]:
        """Encode conversations that end with an answer.

        Reasons: ``template_changes_text`` (the genuine template renders something else),
        ``template_differs`` (tokenised as a whole it gives other ids), ``unclear_boundary`` (prompt and
        answer share a token), ``not_representable`` (a character is lost: some vocabularies lack bytes).
        """
        plans = [self._plan(messages) for messages in conversations]
        laid = self._runs(plans)
        whole = self._whole([plan.text for plan in plans])
        encoded = [self._check(plan, ids, reference) for plan, ids, reference in zip(plans, laid, whole, strict=True)]
        decoded = self._backend.decode_batch([item.input_ids for item in encoded], skip_special_tokens=False)
        return [
            refused("not_representable") if item.reason is None and text != self._normal(plan.text) else item
            for item, text, plan in zip(encoded, decoded, plans, strict=True)
        ]

    def encode(self, messages: Sequence[Message]) -> Encoded:
        """Encode one conversation; TemplateError when it cannot be encoded with certainty."""
        encoded = self.encode_batch([messages])[0]
        if encoded.reason is not None:
            raise TemplateError(f"tokenizer {self.name!r}: a conversation cannot be encoded with certainty ({encoded.reason})")
        return encoded

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids up to where the next answer begins; earlier answers lie in it as they do in training."""
        plan = self._plan(messages, prompt=True)
        laid = self._lay(plan, self._runs([plan])[0])
        if not plan.faithful or laid.reason is not None:
            problem = laid.reason or "template_changes_text"
            raise TemplateError(f"tokenizer {self.name!r}: a prompt cannot be encoded with certainty ({problem})")
        return laid.input_ids

    def _layout(self, turns: Sequence[tuple[str, str]], *, prompt: bool) -> Skeleton:
        roles = tuple(role for role, _ in turns)
        empty = tuple(not text for _, text in turns)
        key = (roles, empty, prompt)
        if key not in self._skeletons:
            self._skeletons[key] = build_skeleton(self._render, roles, empty, self._pattern, prompt=prompt)
        return self._skeletons[key]

    def _plan(self, messages: Sequence[Message], *, prompt: bool = False) -> _Plan:
        placed = self.family.place(messages)
        texts = tuple(self.family.stripped(message["role"], message["content"]) for message in placed)
        skeleton = self._layout([(m["role"], text) for m, text in zip(placed, texts, strict=True)], prompt=prompt)
        text = skeleton.fill(texts)
        return _Plan(skeleton, texts, text, self._render(self.family.prepared(placed), prompt=prompt)[0] == text)

    def _runs(self, plans: Sequence[_Plan]) -> list[list[list[int]]]:
        """Ids of every plan's runs."""
        texts = [plan.runs() for plan in plans]
        flat = iter(self._plain([text for runs in texts for text in runs]))
        laid = [[next(flat) for _ in runs] for runs in texts]
        for plan, runs, ids in zip(plans, texts, laid, strict=True):
            if self._inner is not self._backend and isinstance(plan.skeleton.items[0], Run):
                self._backend.encode_special_tokens = True
                ids[0] = self._backend.encode(runs[0], add_special_tokens=False).ids
        return laid

    def _check(self, plan: _Plan, runs: Sequence[list[int]], reference: list[int]) -> Encoded:
        """The conversation's encoding, compared with the genuine template tokenised as a whole."""
        if not plan.faithful:
            return refused("template_changes_text")
        controls = [item for item in plan.skeleton.items if isinstance(item, Control)]
        if len(controls) == len(self._pattern.findall(plan.text)):
            rest = iter(runs)
            straight = [
                token
                for item in plan.skeleton.items
                for token in ([self._controls[item.text]] if isinstance(item, Control) else next(rest))
            ]
            if straight != reference:
                return refused("template_differs")
        return self._lay(plan, runs)

    def _lay(self, plan: _Plan, runs: Sequence[list[int]]) -> Encoded:
        """Lay control tokens and runs one after the other, each with its weight."""
        ids: list[int] = []
        weights: list[float] = []
        answers: list[tuple[int, int]] = []
        start: int | None = None
        rest = iter(runs)
        for item in plan.skeleton.items:
            if isinstance(item, Control):
                parts = [([self._controls[item.text]], item.kind)]
            else:
                run = next(rest)
                if not self._control_ids.isdisjoint(run):
                    return refused("control_token_in_text")
                split = (run, []) if item.cut is None else self._split(item.head(plan.texts), item.fill(plan.texts), run)
                if split is None:
                    return refused("unclear_boundary")
                parts = [(split[0], item.kind), (split[1], "answer")]
            for tokens, kind in parts:
                if tokens and (kind == "answer") != (start is not None):
                    if start is not None:
                        answers.append((start, len(ids)))
                    start = len(ids) if start is None else None
                ids += tokens
                weights += [{"answer": 1.0, "tail": 0.0}.get(kind, self.prompt_loss_weight)] * len(tokens)
        if start is not None:
            answers.append((start, len(ids)))
        return Encoded(input_ids=ids, loss_weights=weights, answers=tuple(answers))

    def _split(self, head: str, text: str, whole: list[int]) -> tuple[list[int], list[int]] | None:
        """Prompt and answer ids of a run that holds both; the prompt's ids are those of the prompt alone.

        An answer that begins with white space may merge with the prompt's last token. The model is given
        the prompt as a whole token, so the answer is then tokenised by itself.
        """
        if head not in self._heads:
            self._heads[head] = self._plain([head])[0]
        prompt = self._heads[head]
        if whole[: len(prompt)] == prompt:
            return prompt, whole[len(prompt) :]
        answer = self._plain([text[len(head) :]])[0]
        return (prompt, answer) if self.decode_text([*prompt, *answer]) == text else None

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts in which nothing is a control token."""
        self._inner.encode_special_tokens = True
        return [encoding.ids for encoding in self._inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _whole(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of rendered conversations, as the genuine tokenizer gives them."""
        self._backend.encode_special_tokens = False
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, control tokens shown by their names."""
        return str(self._backend.decode(list(ids), skip_special_tokens=False))

    def decode_text(self, ids: Sequence[int]) -> str:
        """Text of content ids, control tokens left out."""
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def stripped(self, role: str, text: str) -> str:
        """``text`` as the template puts it and the tokenizer normalises it."""
        return self._normal(self.family.stripped(role, text))

    def _normal(self, text: str) -> str:
        return unicodedata.normalize("NFC", text) if self._composes else text

    def is_control(self, token: int) -> bool:
        """True for control tokens."""
        return token in self._control_ids

    def matches_reference(self, messages: Sequence[Message], encoded: Encoded) -> bool:
        """True when transformers' own ``apply_chat_template`` gives these ids.

        Where a text holds control tokens, or an answer begins with white space that would merge with the
        prompt, the library cuts the text elsewhere: then the decoded conversations must be equal.
        """
        placed = self.family.prepared(self.family.place(messages))
        injected = any(self._pattern.search(message["content"]) for message in placed)
        self._backend.encode_special_tokens = False
        reference = self._tokenizer.apply_chat_template(
            placed, chat_template=self._template, return_dict=False, sanitize_control_tokens=injected
        )
        if list(reference) == encoded.input_ids:
            return True
        spaced = any(message["content"][:1].isspace() for message in placed if message["role"] == "assistant")
        return (injected or spaced) and self.decode(reference) == self.decode(encoded.input_ids)

    def save(self, folder: str) -> None:
        """Write the tokenizer and its template."""
        self._backend.encode_special_tokens = False
        self._tokenizer.chat_template = self._template
        self._tokenizer.save_pretrained(folder)

    def facts(self) -> Mapping[str, Any]:
        """Source and rules."""
        return {
            "name": self.name,
            "family": self.family.name,
            "source": "template of the tokenizer"
            if self._own_template
            else "published Gemma format (the tokenizer carries none)",
            "template_hash": hashlib.blake2b(self._template.encode(), digest_size=8).hexdigest(),
            "mask": "generation marks" if self._method == "generation" else "validated prefix",
            "system": _PLACES[self.family.system],
            "vocab_size": self.vocab_size,
            "plain_text_markers": False,
        }
