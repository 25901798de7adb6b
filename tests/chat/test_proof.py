"""The proof refuses templates with the faults that users hit elsewhere, and says which."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mistral_common
import pytest

from chat.toy import GOOD, toy
from tunemill.chat.conversations import Message
from tunemill.chat.encoded import Encoded
from tunemill.chat.huggingface import HuggingFaceChat
from tunemill.chat.probes import PROBES, conversation
from tunemill.chat.proof import prove
from tunemill.errors import TemplateError

_MARKED_TURN = (
    "}}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<end>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<end>' }}{% endif %}"
)
MARKED = GOOD.replace("+ m['content'] + '<end>' }}", _MARKED_TURN)


class Spoiled:
    """A good tokenizer whose encodings are spoiled by ``change``: what a faulty implementation would give."""

    def __init__(self, change: Callable[[Encoded], Encoded], **facts: Any) -> None:
        self._good = toy()
        self._change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._good, name)

    def encode_batch(self, conversations: Sequence[Sequence[Message]]) -> list[Encoded]:
        return [self._change(encoded) for encoded in self._good.encode_batch(conversations)]

    def encode(self, messages: Sequence[Message]) -> Encoded:
        return self.encode_batch([messages])[0]

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        encoded = self.encode([*messages, {"role": "assistant", "content": "x"}])
        return encoded.input_ids[: encoded.answers[-1][0]]


def _with(encoded: Encoded, ids: list[int], weights: list[float], shift: int = 0) -> Encoded:
    answers = tuple((start + shift, stop + shift) for start, stop in encoded.answers)
    return replace(encoded, input_ids=ids, loss_weights=weights, answers=answers)


def doubled_bos(e: Encoded) -> Encoded:
    return _with(e, [e.input_ids[0], *e.input_ids], [0.0, *e.loss_weights], 1)


def end_masked(e: Encoded) -> Encoded:
    ends = {stop - 1 for _, stop in e.answers}
    return replace(e, loss_weights=[0.0 if place in ends else w for place, w in enumerate(e.loss_weights)])


def second_turn_opened(e: Encoded) -> Encoded:
    return _with(e, [*e.input_ids, toy().encode_prompt(conversation("a"))[-1]], [*e.loss_weights, 0.0])


def tail_trained(e: Encoded) -> Encoded:
    return _with(e, [*e.input_ids, 7], [*e.loss_weights, 1.0])


def nothing_trained(e: Encoded) -> Encoded:
    return replace(e, loss_weights=[0.0] * len(e.input_ids))


def prompt_trained(e: Encoded) -> Encoded:
    return replace(e, loss_weights=[1.0] * len(e.input_ids))


def answer_shifted(e: Encoded) -> Encoded:
    weights = list(e.loss_weights)
    for start, _ in e.answers:
        weights[start] = 0.0
    return replace(e, answers=tuple((start + 1, stop) for start, stop in e.answers), loss_weights=weights)


def system_lost(e: Encoded) -> Encoded:
    ids, cut = e.input_ids, toy()._controls
    if ids[1] != cut["<sys>"]:
        return e
    stop = ids.index(cut["<end>"]) + 1
    return _with(e, [ids[0], *ids[stop:]], [e.loss_weights[0], *e.loss_weights[stop:]], 1 - stop)


def users_changed(e: Encoded) -> Encoded:
    first = e.answers[0][0] - 3
    return replace(e, input_ids=[9 if place == first else token for place, token in enumerate(e.input_ids)])


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (doubled_bos, "beginning of sequence not doubled"),
        (end_masked, "mask covers exactly the answers"),
        (nothing_trained, "mask covers exactly the answers"),
        (prompt_trained, "mask covers exactly the answers"),
        (answer_shifted, "mask covers exactly the answers"),
        (second_turn_opened, "nothing trained after the last answer"),
        (tail_trained, "mask covers exactly the answers"),
        (system_lost, "system text present"),
        (users_changed, "user texts present"),
    ],
)
def test_spoiled_encodings_are_refused(change: Callable[[Encoded], Encoded], check: str) -> None:
    """Each fault makes the proof fail with the name of a check."""
    with pytest.raises(TemplateError, match=check):
        prove(Spoiled(change))  # type: ignore[arg-type]


def test_ids_that_differ_from_the_genuine_template_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison with the reference is a check of its own."""
    tokenizer = toy()
    monkeypatch.setattr(tokenizer, "matches_reference", lambda messages, encoded: len(messages) != 2)
    with pytest.raises(TemplateError, match="genuine template's: the ids differ .* .one turn"):
        prove(tokenizer)


def test_answers_that_do_not_decode_back_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer must come back as the family's stripping leaves it, not otherwise."""
    tokenizer = toy()
    monkeypatch.setattr(tokenizer, "stripped", lambda role, text: text.rstrip())
    with pytest.raises(TemplateError, match="answers decode back exactly"):
        prove(tokenizer)


def test_injected_control_tokens_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer that takes a text's <end> for the control token fails by name."""
    tokenizer = toy()
    naive = toy()
    monkeypatch.setattr(naive, "_plain", naive._whole)
    monkeypatch.setattr(naive, "_control_ids", frozenset())
    monkeypatch.setattr(tokenizer, "encode", naive.encode)
    with pytest.raises(TemplateError, match="control tokens in texts stay text: .* became control tokens"):
        prove(tokenizer)


def test_good_template_passes_every_check() -> None:
    """A faultless template passes, with the prefix method or with generation marks."""
    for template in (GOOD, MARKED):
        assert all(check.passed for check in prove(toy(template)))
    assert toy(GOOD).facts()["mask"] == "validated prefix"
    assert toy(MARKED).facts()["mask"] == "generation marks"


def test_marks_and_prefix_give_the_same_weights() -> None:
    """Both ways to find the answers agree token by token."""
    for messages in PROBES.values():
        assert toy(MARKED).encode(messages) == toy(GOOD).encode(messages)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (None, "no chat template"),
        ("{{ '<bos>' + GOOD }}", "refuses"),
        (GOOD.replace("+ '<end>'", "+ ('<end>' if m['role'] != 'assistant' else '')"), "no control token ends"),
        (GOOD.replace("m['content']", "m['content'] | upper"), "in a way that is not known"),
        (GOOD.replace("'<bos>'", "'<bos><bos>'"), "beginning of sequence not doubled"),
        (GOOD.replace("{% if add_generation_prompt %}", "").replace("{% endif %}", ""), "is no prefix|follows the last answer"),
        (GOOD.replace("m['content']", "(m['content'] if loop.last or m['role'] == 'user' else '')"), "leaves out"),
        (
            MARKED.replace("{{ {'system'", "{{ 'x' if m['role'] == 'assistant' }}{{ {'system'"),
            "the tokens before the last answer",
        ),
    ],
)
def test_faulty_templates_are_refused(template: str | None, problem: str) -> None:
    """A template that is missing, loses or changes text, has no end, doubles its beginning or opens a turn is refused."""
    with pytest.raises(TemplateError, match=problem):
        prove(toy(template))


def test_template_that_loses_the_system_text_in_training_gets_it_back() -> None:
    """Like Mistral's: the system text stands in the last user turn only when that turn is the last of all."""
    losing = (
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
        "{% else %}{% set turns = messages %}{% endif %}{{ '<bos>' }}{% for m in turns %}{% if m['role'] == 'user' %}"
        "{{ '<user>' + (system + '\n\n' if loop.last and system is defined else '') + m['content'] + '<bot>' }}"
        "{% else %}{{ m['content'] + '<end>' }}{% endif %}{% endfor %}"
    )
    tokenizer = toy(losing)
    assert all(check.passed for check in prove(tokenizer))
    shown = tokenizer.decode(tokenizer.encode(conversation("a", "b", "c", "d", system="S")).input_ids)
    assert shown == "<bos><user>a<bot>b<end><user>S\n\nc<bot>d<end>"


def test_template_without_a_system_role_gets_the_text_in_the_first_user_turn() -> None:
    """Like Gemma 2's: what the template refuses is folded into the first question."""
    refusing = GOOD.replace(
        "{% for m in messages %}", "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    )
    tokenizer = toy(refusing)
    assert all(check.passed for check in prove(tokenizer))
    assert tokenizer.decode(tokenizer.encode(conversation("a", "b", system="S")).input_ids) == "<bos><user>S\n\na<end><bot>b<end>"


def test_marker_that_is_not_flagged_special_is_still_a_control_token() -> None:
    """A template may use an ordinary added token (<think>) as a marker: in a text it stays text."""
    thinking = GOOD.replace("'<bot>' }}{% endif %}", "'<bot>' }}{% endif %}").replace(
        "'assistant': '<bot>'", "'assistant': '<bot><think>'"
    )
    thinking = thinking.replace(
        "{% if add_generation_prompt %}{{ '<bot>' }}", "{% if add_generation_prompt %}{{ '<bot><think>' }}"
    )
    tokenizer = toy(thinking, extra=("<think>",))
    assert all(check.passed for check in prove(tokenizer))
    plain, hostile = (tokenizer.encode(conversation(text, text)).input_ids for text in ("x", "<think><bot>"))
    assert [t for t in plain if tokenizer.is_control(t)] == [t for t in hostile if tokenizer.is_control(t)]


def test_row_that_the_template_renders_otherwise_is_left_out_by_name() -> None:
    """A template that looks into the text (thinking blocks) gives a reason, not a silent change."""
    looking = GOOD.replace("m['content']", "(m['content'].split('</t>')[-1])")
    tokenizer = toy(looking)
    reasons = [encoded.reason for encoded in tokenizer.encode_batch([conversation("a", "x</t>b"), conversation("a", "b")])]
    assert reasons == ["template_changes_text", None]
    with pytest.raises(TemplateError, match="template_changes_text"):
        prove(tokenizer, [conversation("a", "x</t>b")])


def test_prompt_loss_weight_leaves_the_tail_at_zero() -> None:
    """What a template puts after an answer never gets a weight, whatever the prompt's."""
    tokenizer = toy(GOOD.replace("+ '<end>'", "+ '<end>\n'"), prompt_loss_weight=0.5)
    encoded = tokenizer.encode(conversation("a", "b", "c", "d"))
    shown = [(tokenizer.decode([token]), weight) for token, weight in zip(encoded.input_ids, encoded.loss_weights, strict=True)]
    one = [("<user>", 0.5), ("a", 0.5), ("<end>", 0.5), ("\n", 0.5), ("<bot>", 0.5), ("b", 1.0), ("<end>", 1.0), ("\n", 0.0)]
    two = [("<user>", 0.5), ("c", 0.5), ("<end>", 0.5), ("\n", 0.5), ("<bot>", 0.5), ("d", 1.0), ("<end>", 1.0), ("\n", 0.0)]
    assert shown == [("<bos>", 0.5), *one, *two]
    assert all(check.passed for check in prove(tokenizer))


def test_template_that_mistakes_the_system_text_for_another_role_is_not_followed() -> None:
    """A template with only two branches would write the system text as an answer: it goes into the first question instead."""
    two = (
        "{{ '<bos>' }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<user>' + m['content'] + '<bot>' }}"
        "{% else %}{{ m['content'] + '<end>' }}{% endif %}{% endfor %}"
    )
    tokenizer = toy(two)
    assert all(check.passed for check in prove(tokenizer))
    assert tokenizer.decode(tokenizer.encode(conversation("a", "b", system="S")).input_ids) == "<bos><user>S\n\na<bot>b<end>"


@pytest.mark.parametrize("begin", ["", "{{ bos_token }}"])
def test_sentencepiece_tokenizer_that_prepends_a_space_once_is_followed(begin: str, tmp_path: Path) -> None:
    """Converted SentencePiece files put a space before the first text only: pieces must not get one each."""
    from transformers import LlamaTokenizer

    bundled = Path(mistral_common.__file__).parent / "data" / "mistral_instruct_tokenizer_240323.model.v3"
    shutil.copy(bundled, tmp_path / "tokenizer.model")
    tokenizer = LlamaTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = (
        begin + "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    )
    assert all(check.passed for check in prove(HuggingFaceChat("llama", tokenizer)))
