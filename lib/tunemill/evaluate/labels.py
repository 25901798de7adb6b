"""Which tokens stand for a label, and which labels there are. Plain decisions, no model.

A label's score is the log-probability of its tokens after the prompt, tokenised as the training rows
tokenise them (inside the whole conversation, so that leading spaces and merges are the same). The
end-of-turn token is left out as long as no label's tokens begin another's: the labels are then
different beginnings of an answer, and their probabilities can be compared as they are. When one label
begins another ("yes", "yes and no") only the end tells them apart, so it counts for every label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tunemill.chat.conversations import Message
from tunemill.chat.encoded import Encoded
from tunemill.errors import DataError, TemplateError

__all__ = ["LabelSet", "Message", "Tokens", "answer_tokens", "choose_labels", "first_token_clashes", "label_tails"]

Tokens = tuple[int, ...]

_MOST_LABELS = 100


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """The labels in order, and the index of the positive one."""

    names: tuple[str, ...]
    positive: int


def choose_labels(found: Sequence[str | None], labels: Sequence[str], positive_label: str | None) -> LabelSet:
    """The labels to score, checked against the right labels of the rows, ``found``.

    Raises DataError for a row without a label, a row whose label is not among ``labels``, and a label
    that no row has.
    """
    if not found:
        raise DataError("evaluate: there are no rows to evaluate on; the test split is empty")
    missing = sum(label is None or not label.strip() for label in found)
    if missing:
        raise DataError(f"evaluate: {missing:,} of {len(found):,} rows have no label; give each row one, or leave those rows out")
    counts = Counter(label for label in found if label is not None)
    names = tuple(labels) or tuple(sorted(counts))
    for unknown in (name for name in sorted(counts) if name not in names):
        raise DataError(
            f"evaluate: label {unknown!r} of {counts[unknown]:,} rows is not in evaluate.labels ({', '.join(names)}); "
            "add it there or leave those rows out"
        )
    for absent in (name for name in names if name not in counts):
        raise DataError(
            f"evaluate: label {absent!r} never occurs in the rows to evaluate (they have {', '.join(sorted(counts))}); "
            "correct evaluate.labels or add such rows"
        )
    if len(names) < 2:
        raise DataError(f"evaluate: every row has the label {names[0]!r}; at least two labels are needed")
    if len(names) > _MOST_LABELS and not labels:
        raise DataError(
            f"evaluate: the rows have {len(names):,} distinct labels; name those to choose between in evaluate.labels"
        )
    if positive_label is not None and positive_label not in names:
        raise DataError(f"evaluate: positive_label {positive_label!r} is not a label of the rows ({', '.join(names)})")
    default = names[0] if labels else names[-1]
    return LabelSet(names=names, positive=names.index(positive_label or default))


def answer_tokens(encoded: Encoded, prompt: Sequence[int]) -> tuple[Tokens, Tokens]:
    """Split an encoded conversation into what stands before its last answer and that answer with its end-of-turn token.

    The first part is ``prompt`` wherever the tokenizer keeps to it. Where it merges over the boundary the
    first part is the common beginning, so that the answer's tokens hold the merge.
    """
    start, stop = encoded.answers[-1]
    start = min(start, _common_beginning(encoded.input_ids, prompt))
    return tuple(encoded.input_ids[:start]), tuple(encoded.input_ids[start:stop])


def label_tails(answers: Sequence[Tokens]) -> tuple[Tokens, ...]:
    """The tokens to score for each label, from its answer tokens, of which the last ends the turn.

    See the module's text for when the end counts. Raises TemplateError when two labels have the same tokens.
    """
    bare = tuple(tokens[:-1] for tokens in answers)
    nested = any(b[: len(a)] == a for i, a in enumerate(bare) for j, b in enumerate(bare) if i != j)
    tails = tuple(answers) if nested else bare
    if len(set(tails)) < len(tails):
        raise TemplateError("evaluate: two labels have the same tokens (perhaps they differ only in spaces); choose other labels")
    return tails


def first_token_clashes(names: Sequence[str], tails: Sequence[Tokens]) -> list[tuple[str, str]]:
    """Pairs of labels that begin with the same token: the model cannot decide between them at the first step."""
    return [
        (names[i], names[j]) for i in range(len(tails)) for j in range(i + 1, len(tails)) if tails[i][:1] == tails[j][:1] != ()
    ]


def _common_beginning(one: Sequence[int], other: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
