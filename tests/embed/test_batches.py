"""Batches: every text once, within the token budget, padded by its own length alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tunemill.embed.batches import Buckets, padded_width


@given(st.lists(st.integers(1, 512), max_size=200), st.integers(64, 4096), st.integers(1, 50))
def test_every_text_goes_through_once_within_the_budget(lengths: list[int], batch_tokens: int, chunk: int) -> None:
    """No text is lost or doubled; a batch exceeds the budget only when it is a single text."""
    buckets = Buckets(batch_tokens, 512)
    batches = [
        batch for start in range(0, len(lengths), chunk) for batch in buckets.add(start, np.array(lengths[start : start + chunk]))
    ]
    batches += buckets.flush()
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch.rows) == 1 or len(batch.rows) * batch.width <= batch_tokens
        assert {padded_width(lengths[row], 512) for row in batch.rows} == {batch.width}


@given(st.lists(st.integers(1, 512), max_size=200), st.integers(64, 4096))
def test_unpadded_batches_hold_real_tokens_only(lengths: list[int], batch_tokens: int) -> None:
    """Without padding the budget counts each text's own tokens, texts of one length are neighbours, and few batches are left."""
    buckets = Buckets(batch_tokens, 512, padded=False)
    batches = [*buckets.add(0, np.array(lengths, np.int64)), *buckets.flush()]
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(lengths)))
    for batch in batches:
        inside = [lengths[row] for row in batch.rows]
        assert len(inside) == 1 or sum(inside) <= batch_tokens
        assert batch.width == inside[0]
        assert inside == sorted(inside, reverse=True)
    assert len(batches) <= 1 + 2 * sum(lengths) / batch_tokens + sum(length > batch_tokens / 2 for length in lengths)


@given(st.integers(1, 5000))
def test_padding_stays_below_an_eighth(length: int) -> None:
    """A text is never padded by more than 12.5 %, nor beyond what the model takes, nor cut."""
    assert length <= padded_width(length, 1 << 20) <= length * 1.125
    assert padded_width(min(length, 300), 300) <= 300
