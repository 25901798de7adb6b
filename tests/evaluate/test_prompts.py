"""Rows, few-shot examples and batches."""

from __future__ import annotations

import pytest

from tunemill.errors import DataError
from tunemill.evaluate.prompts import Row, draw_examples, is_classification, token_batches, with_examples


def row(name: str, answer: str, *, system: str | None = None, label: str | None = None) -> Row:
    """One question and answer."""
    head = ({"role": "system", "content": system},) if system else ()
    return Row(
        id=name,
        messages=(*head, {"role": "user", "content": f"text of {name}"}, {"role": "assistant", "content": answer}),
        label=label,
    )


def test_examples_are_balanced_and_do_not_depend_on_the_order_of_rows() -> None:
    """The draw hangs on the seed and the ids alone."""
    rows = [row(f"r{i}", "yes" if i % 3 else "no") for i in range(30)]
    drawn = draw_examples(rows, ["yes", "no"], 3, seed=1)
    assert sorted(example.answer for example in drawn) == ["no"] * 3 + ["yes"] * 3
    assert drawn == draw_examples(rows[::-1], ["yes", "no"], 3, seed=1)
    assert drawn != draw_examples(rows, ["yes", "no"], 3, seed=2)


def test_too_few_examples_of_a_label_are_refused() -> None:
    """The message names the label and how many there are."""
    with pytest.raises(DataError, match="1 rows with label 'no'"):
        draw_examples([row("a", "yes"), row("b", "yes"), row("c", "no")], ["yes", "no"], 2, seed=0)


def test_examples_stand_between_the_system_text_and_the_question() -> None:
    """The prompt's own system text stays first and the examples' system texts are left out."""
    asked = row("q", "yes", system="Be brief.")
    found = with_examples(asked.prompt, [row("e", "no", system="Be brief.")])
    assert [(turn["role"], turn["content"]) for turn in found] == [
        ("system", "Be brief."),
        ("user", "text of e"),
        ("assistant", "no"),
        ("user", "text of q"),
    ]


def test_answers_are_labels_when_they_equal_the_label_column() -> None:
    """Rows that carry a label but answer with a text are not a classification."""
    assert is_classification([row("a", "yes", label="yes")], [])
    assert not is_classification([row("a", "What a day!", label="yes")], [])
    assert is_classification([row("a", "What a day!")], ["yes", "no"])


def test_batches_hold_the_token_budget_and_every_row_once() -> None:
    """Padded tokens stay within the budget, unless one row alone is longer."""
    lengths = [7, 3, 50, 3, 9, 4]
    batches = list(token_batches(lengths, 16))
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert all(max(lengths[i] for i in batch) * len(batch) <= 16 or len(batch) == 1 for batch in batches)
    assert len(batches) < 6
