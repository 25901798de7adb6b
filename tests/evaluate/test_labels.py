"""Which labels there are and which tokens stand for them."""

from __future__ import annotations

import pytest

from tunemill.chat.encoded import Encoded
from tunemill.errors import ConfigError, DataError, TemplateError
from tunemill.evaluate.config import EvaluateConfig
from tunemill.evaluate.labels import answer_tokens, choose_labels, first_token_clashes, label_tails


def test_configured_order_makes_the_first_label_positive() -> None:
    """`labels: [positive, negative]` reads as it is written."""
    found = choose_labels(["negative", "positive"], ["positive", "negative"], None)
    assert found.names == ("positive", "negative")
    assert found.names[found.positive] == "positive"


def test_labels_found_in_the_rows_are_sorted_and_the_last_is_positive() -> None:
    """0 and 1, no and yes, negative and positive: the sorted last is the positive one."""
    found = choose_labels(["1", "0", "1"], [], None)
    assert (found.names, found.positive) == (("0", "1"), 1)


@pytest.mark.parametrize(
    ("found", "labels", "says"),
    [
        ([], ["a", "b"], "no rows"),
        (["a", None], ["a", "b"], "1 of 2 rows have no label"),
        (["a", "b", "c", "c"], ["a", "b"], "'c' of 2 rows is not in evaluate.labels"),
        (["a", "a"], ["a", "b"], "'b' never occurs"),
        (["a", "a"], [], "at least two labels"),
        ([str(i) for i in range(200)], [], "200 distinct labels"),
    ],
)
def test_labels_that_do_not_fit_the_rows_are_refused(found: list[str | None], labels: list[str], says: str) -> None:
    """Each mismatch is one line that names the label."""
    with pytest.raises(DataError, match=says) as error:
        choose_labels(found, labels, None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"labels": ("a",)}, "at least two"),
        ({"labels": ("a", "a")}, "twice"),
        ({"labels": ("a", " ")}, "empty label"),
        ({"labels": ("a", "b"), "positive_label": "c"}, "should be one of a, b"),
        ({"variants": ()}, "variants is empty"),
        ({"variants": ("tuned",), "few_shot": 2}, "no base"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused(values: dict[str, object], says: str) -> None:
    """Cross-field checks say what would be right."""
    with pytest.raises(ConfigError, match=says):
        EvaluateConfig(**values)  # type: ignore[arg-type]


def test_the_end_of_turn_counts_only_when_one_label_begins_another() -> None:
    """Labels with different beginnings are scored without the end token, nested ones with it."""
    assert label_tails([(5, 9), (6, 7, 9)]) == ((5,), (6, 7))
    assert label_tails([(5, 9), (5, 7, 9)]) == ((5, 9), (5, 7, 9))


def test_labels_with_the_same_tokens_are_refused() -> None:
    """Labels that a tokenizer cannot tell apart have no probabilities of their own."""
    with pytest.raises(TemplateError, match="same tokens"):
        label_tails([(5, 9), (5, 9)])


def test_tokens_that_merge_over_the_end_of_the_prompt_belong_to_the_label() -> None:
    """A tokenizer that joins the prompt's last piece with the label's first gives that piece to the label."""
    encoded = Encoded(input_ids=[1, 2, 30, 9], loss_weights=[0, 0, 1, 1], answers=((3, 4),))
    assert answer_tokens(encoded, [1, 2, 3]) == ((1, 2), (30, 9))


def test_labels_that_begin_alike_are_found() -> None:
    """A shared first token is worth a warning."""
    assert first_token_clashes(["a", "b", "c"], [(1, 2), (3,), (1, 4)]) == [("a", "c")]
