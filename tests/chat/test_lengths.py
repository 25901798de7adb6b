"""The length limit leaves out whole rows or whole exchanges, never a part of a turn."""

from __future__ import annotations

from chat.toy import toy
from tunemill.chat.lengths import fit
from tunemill.chat.probes import conversation
from tunemill.chat.tokenizer import load

LONG = conversation("aa", "bb", "cc", "dd", "ee", "ff", system="S")


def test_rows_within_the_limit_stay_as_they_are() -> None:
    """Exactly max_length tokens still fit."""
    encoded = toy().encode(LONG)
    assert fit(toy(), LONG, encoded, len(encoded.input_ids), "drop") == (LONG, encoded)
    assert fit(toy(), LONG, encoded, len(encoded.input_ids) - 1, "drop") is None


def test_truncation_leaves_out_whole_exchanges_at_the_end() -> None:
    """What is left still ends with a complete answer and its trained end-of-turn token."""
    tokenizer = toy()
    encoded = tokenizer.encode(LONG)
    fitted = fit(tokenizer, LONG, encoded, len(encoded.input_ids) - 1, "truncate")
    assert fitted is not None
    messages, shorter = fitted
    assert messages == LONG[:5]
    assert shorter.input_ids[-1] == tokenizer.end_of_turn_id
    assert shorter.loss_weights[-1] == 1.0


def test_truncation_gives_up_when_the_first_exchange_is_too_long() -> None:
    """Nothing is cut inside a turn."""
    tokenizer = toy()
    assert fit(tokenizer, LONG, tokenizer.encode(LONG), 10, "truncate") is None


def test_truncation_keeps_the_system_text_where_it_moves_with_the_last_turn() -> None:
    """Mistral v3 has the system text in the last user turn: it must be there in the shortened row too."""
    tokenizer = load("mistral-common/v3")
    fitted = fit(tokenizer, LONG, tokenizer.encode(LONG), 18, "truncate")
    assert fitted is not None
    assert tokenizer.decode(fitted[1].input_ids).endswith("[INST]S\n\ncc[/INST]dd</s>")
