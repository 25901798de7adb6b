"""Token rows in memory."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from finetune.tiny import table
from tunemill.errors import DataError
from tunemill.finetune.rows import TokenRows


def test_order_does_not_depend_on_blocks() -> None:
    """However the rows were cut into blocks and in whatever order they come, row n is the same row."""
    whole = table(20)
    one = TokenRows.of([whole])
    many = TokenRows.of([whole.slice(13), whole.slice(0, 5), whole.slice(5, 8)])
    for number in range(20):
        for ours, theirs in zip(one.row(number), many.row(number), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(one.lengths, many.lengths)
    np.testing.assert_allclose(one.loss_sums, many.loss_sums)


def test_the_first_token_is_never_predicted() -> None:
    """A weight on the first token does not count, since nothing stands before it."""
    made = pa.table({"id": ["a"], "input_ids": [[5, 6, 7]], "loss_weights": pa.array([[1.0, 0.5, 1.0]], pa.list_(pa.float32()))})
    assert TokenRows.of([made]).loss_sums.tolist() == [1.5]


def test_lists_of_different_length_are_refused() -> None:
    """Ids and weights that do not match are an error that says what to do."""
    made = pa.table({"id": ["a"], "input_ids": [[5, 6]], "loss_weights": [[1.0]]})
    with pytest.raises(DataError, match="differ in length"):
        TokenRows.of([made])
