"""What a transformers tokenizer carries: its chat template as a function, and its text encoder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

from tunemill.chat.conversations import Message
from tunemill.chat.families import GEMMA_TEMPLATE
from tunemill.chat.skeleton import Render
from tunemill.errors import TemplateError

__all__ = ["inner_tokenizer", "renderer", "template_of"]


def inner_tokenizer(backend: Any) -> Any:
    """The tokenizer for text that does not stand at the very beginning.

    SentencePiece tokenizers converted with ``prepend_scheme: first`` put a space before the first text only.
    """
    from tokenizers import Tokenizer, pre_tokenizers

    before = backend.pre_tokenizer
    if not isinstance(before, pre_tokenizers.Metaspace) or before.prepend_scheme != "first":
        return backend
    inner = Tokenizer.from_str(backend.to_str())
    inner.pre_tokenizer = pre_tokenizers.Metaspace(replacement=before.replacement, prepend_scheme="never", split=before.split)
    return inner


def template_of(name: str, tokenizer: Any, special: Set[str]) -> tuple[str, bool]:
    """The Jinja template, and whether it is the tokenizer's own; TemplateError when there is none to use."""
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get("default")
    if isinstance(template, str) and template.strip():
        return template, True
    if {"<start_of_turn>", "<end_of_turn>"} <= special:
        return GEMMA_TEMPLATE, False
    raise TemplateError(
        f"tokenizer {name!r}: carries no chat template; use the tokenizer of the model's instruct version, or mistral-common/v3"
    )


def renderer(tokenizer: Any, template: str) -> Render:
    """``template`` as a function, rendered as transformers renders it; its refusals become TemplateError."""
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    marks = re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None
    names = dict(tokenizer.special_tokens_map)

    def render(messages: Sequence[Message], *, prompt: bool = False) -> tuple[str, list[tuple[int, int]]]:
        try:
            texts, spans = render_jinja_template(
                [list(messages)],
                chat_template=template,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=marks,
                **names,
            )
        except (jinja2.TemplateError, TypeError, KeyError, IndexError, ValueError) as error:
            raise TemplateError(f"the template refuses roles {'/'.join(m['role'] for m in messages)} ({error})") from error
        return texts[0], list(spans[0]) if spans else []

    return render
