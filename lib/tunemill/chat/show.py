"""Examples as a reader sees them: the whole rendered text, with the trained tokens coloured."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from tunemill.chat.config import TemplateConfig
from tunemill.chat.conversations import read_row
from tunemill.chat.encoded import ChatTokenizer, Encoded
from tunemill.chat.tokenizer import load
from tunemill.errors import ConfigError

__all__ = ["parts_of", "show_rows"]

_TRAINED, _PLAIN, _RESET = "\x1b[30;42m", "\x1b[2m", "\x1b[0m"


def parts_of(tokenizer: ChatTokenizer, encoded: Encoded) -> list[tuple[str, bool]]:
    """The example as (text, trained) stretches, in order; tokens count as trained from weight 1."""
    pairs = zip(encoded.input_ids, encoded.loss_weights, strict=True)
    groups = itertools.groupby(pairs, key=lambda pair: pair[1] == 1.0)
    return [(tokenizer.decode([token for token, _ in group]), trained) for trained, group in groups]


def show_rows(rows: Sequence[Mapping[str, Any]], config: TemplateConfig, *, colour: bool = True) -> str:
    """Text that shows each row as an example, trained tokens in green (between »« without colour)."""
    if config.tokenizer is None:
        raise ConfigError("template.tokenizer is null: name the model's tokenizer, such as mistral-common/v3 or a folder")
    tokenizer = load(config.tokenizer, prompt_loss_weight=config.prompt_loss_weight)
    return "\n\n".join(_shown(tokenizer, row, config, colour) for row in rows)


def _shown(tokenizer: ChatTokenizer, row: Mapping[str, Any], config: TemplateConfig, colour: bool) -> str:
    conversation = read_row(row, config)
    if conversation.reason is not None:
        return f"# {row.get('id', '')}: left out, {conversation.reason}"
    encoded = tokenizer.encode_batch([conversation.messages])[0]
    if encoded.reason is not None:
        return f"# {row.get('id', '')}: left out, {encoded.reason}"
    trained = sum(stop - start for start, stop in encoded.answers)
    left_out = f", longer than {config.max_length}" if len(encoded.input_ids) > config.max_length else ""
    head = f"# {row.get('id', '')}: {len(encoded.input_ids)} tokens, {trained} trained{left_out}"
    before, after = (_TRAINED, _RESET) if colour else ("»", "«")
    other = _PLAIN if colour else ""
    texts = [
        f"{before}{text}{after}" if mark else f"{other}{text}{_RESET if colour else ''}"
        for text, mark in parts_of(tokenizer, encoded)
    ]
    return "\n".join([head, "".join(texts)])
