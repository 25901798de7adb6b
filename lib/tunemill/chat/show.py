"""Examples as a reader sees them: the whole rendered text, with the trained tokens set off."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from tunemill.chat.encoded import ChatTokenizer, Encoded

__all__ = ["sample_of", "show_samples"]

_TRAINED, _PLAIN, _RESET = "\x1b[30;42m", "\x1b[2m", "\x1b[0m"


def sample_of(tokenizer: ChatTokenizer, row_id: str, encoded: Encoded) -> dict[str, Any]:
    """An example as plain data: id, counts of tokens, and its text as stretches that are trained or not, in order."""
    inside = {place for start, stop in encoded.answers for place in range(start, stop)}
    groups = itertools.groupby(enumerate(encoded.input_ids), key=lambda item: item[0] in inside)
    parts = [{"text": tokenizer.decode([token for _, token in group]), "trained": trained} for trained, group in groups]
    return {"id": row_id, "n_tokens": len(encoded.input_ids), "trained_tokens": len(inside), "parts": parts}


def show_samples(samples: Sequence[Mapping[str, Any]], *, colour: bool = True) -> str:
    """Text that shows examples made by :func:`sample_of`; trained text in green, or between »« without colour."""
    return "\n\n".join(_shown(sample, colour) for sample in samples)


def _shown(sample: Mapping[str, Any], colour: bool) -> str:
    before, after = (_TRAINED, _RESET) if colour else ("»", "«")
    other, end = (_PLAIN, _RESET) if colour else ("", "")
    texts = [f"{before}{p['text']}{after}" if p["trained"] else f"{other}{p['text']}{end}" for p in sample["parts"]]
    return f"# {sample['id']}: {sample['n_tokens']} tokens, {sample['trained_tokens']} trained\n{''.join(texts)}"
