"""The template proof: what must hold of a tokenizer's training examples, checked before every run.

Each check runs over built-in probes and over a sample of the run's own conversations. It looks only
at what the tokenizer gives (ids, weights, answer ranges), not at how it was made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunemill.chat.conversations import Message
from tunemill.chat.encoded import ChatTokenizer, Encoded
from tunemill.chat.probes import PROBES, conversation
from tunemill.errors import TemplateError

__all__ = ["Check", "prove"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing shown about a tokenizer."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class _Case:
    name: str
    messages: Sequence[Message]
    encoded: Encoded


Test = Callable[[ChatTokenizer, _Case], str | None]
"""What is wrong with one case, or None."""


def prove(tokenizer: ChatTokenizer, conversations: Sequence[Sequence[Message]] = ()) -> list[Check]:
    """Run every check on the probes and on ``conversations`` (each ends with an answer).

    Raises TemplateError naming the first check that fails and the case it fails on. Conversations that
    the tokenizer itself leaves out with a reason are not cases; when it leaves out all, that is an error.
    """
    where = f"tokenizer {tokenizer.name!r}"
    names = [*PROBES, *(f"row {place + 1}" for place in range(len(conversations)))]
    everything = [*PROBES.values(), *conversations]
    cases = [_Case(*case) for case in zip(names, everything, tokenizer.encode_batch(everything), strict=True)]
    for case in cases[: len(PROBES)]:
        if case.encoded.reason is not None:
            raise TemplateError(
                f"tokenizer {tokenizer.name!r}: template proof failed on probe {case.name!r}: {case.encoded.reason}"
            )
    left = [case for case in cases if case.encoded.reason is None]
    if conversations and len(left) == len(PROBES):
        reasons = sorted({str(case.encoded.reason) for case in cases[len(PROBES) :]})
        raise TemplateError(
            f"tokenizer {tokenizer.name!r}: no conversation of the input can be encoded with certainty ({', '.join(reasons)})"
        )
    checks = [_run(tokenizer, name, test, left) for name, test in _TESTS.items()]
    checks += [_tails(left), _injection(tokenizer)]
    for check in checks:
        if not check.passed:
            raise TemplateError(f"{where}: template proof failed, {check.name}: {check.detail}")
    return checks


def _run(tokenizer: ChatTokenizer, name: str, test: Test, cases: Sequence[_Case]) -> Check:
    for case in cases:
        problem = test(tokenizer, case)
        if problem is not None:
            return Check(name=name, passed=False, detail=f"{problem} ({case.name})")
    return Check(name=name, passed=True, detail=f"{len(cases)} conversations")


def _bos_once(tokenizer: ChatTokenizer, case: _Case) -> str | None:
    ids = case.encoded.input_ids
    if tokenizer.bos_id is None:
        return None
    if ids[0] != tokenizer.bos_id:
        return f"begins with token {ids[0]}, not with the beginning-of-sequence token {tokenizer.bos_id}"
    return "the beginning-of-sequence token is doubled" if ids[1] == tokenizer.bos_id else None


def _end_trained(tokenizer: ChatTokenizer, case: _Case) -> str | None:
    for _, stop in case.encoded.answers:
        last, weight = case.encoded.input_ids[stop - 1], case.encoded.loss_weights[stop - 1]
        if last != tokenizer.end_of_turn_id or not tokenizer.is_control(last):
            return f"an answer ends with token {last}, not with the end-of-turn token {tokenizer.end_of_turn_id}"
        if weight != 1.0:
            return f"the end-of-turn token has loss weight {weight}"
    return None


def _nothing_after(tokenizer: ChatTokenizer, case: _Case) -> str | None:
    stop = case.encoded.answers[-1][1]
    tail = case.encoded.input_ids[stop:]
    if any(case.encoded.loss_weights[stop:]):
        return "tokens after the last answer have a loss weight"
    if any(tokenizer.is_control(token) for token in tail):
        return f"a control token follows the last answer ({tokenizer.decode(tail)!r})"
    return None


def _system_present(tokenizer: ChatTokenizer, case: _Case) -> str | None:
    system = case.messages[0]["content"].strip() if case.messages[0]["role"] == "system" else ""
    prompt = tokenizer.decode(case.encoded.input_ids[: case.encoded.answers[-1][0]])
    return None if system in prompt else f"the system text {system[:40]!r} is missing"


def _users_present(tokenizer: ChatTokenizer, case: _Case) -> str | None:
    text = tokenizer.decode(case.encoded.input_ids)
    missing = [m["content"] for m in case.messages if m["role"] == "user" and m["content"].strip() not in text]
    return f"a user's text is missing: {missing[0][:40]!r}" if missing else None


def _answers_decode(tokenizer: ChatTokenizer, case: _Case) -> str | None:
    texts = [tokenizer.stripped("assistant", m["content"]) for m in case.messages if m["role"] == "assistant"]
    end = tokenizer.end_of_turn_id
    for (start, stop), text in zip(case.encoded.answers, texts, strict=True):
        ids = case.encoded.input_ids[start : stop - 1]
        decoded = tokenizer.decode_text(ids)
        # Some decoders drop a space at the very beginning; after another token they show what is there.
        if decoded != text and tokenizer.decode([end, *ids]) != tokenizer.decode([end]) + text:
            return f"an answer decodes to {decoded[:60]!r} in place of {text[:60]!r}"
    return None


def _mask_exact(tokenizer: ChatTokenizer, case: _Case) -> str | None:
    encoded = case.encoded
    if not len(encoded.input_ids) == len(encoded.loss_weights) > 0:
        return f"{len(encoded.input_ids)} tokens have {len(encoded.loss_weights)} weights"
    answers = sum(message["role"] == "assistant" for message in case.messages)
    if len(encoded.answers) != answers:
        return f"{answers} answers, but {len(encoded.answers)} trained ranges"
    inside = {place for start, stop in encoded.answers for place in range(start, stop)}
    if any(encoded.loss_weights[place] != 1.0 for place in inside):
        return "a token of an answer is not trained"
    outside = {weight for place, weight in enumerate(encoded.loss_weights) if place not in inside}
    if not outside <= {0.0, tokenizer.prompt_loss_weight}:
        return f"tokens outside the answers have weights {sorted(outside)}"
    start = encoded.answers[-1][0]
    if tokenizer.encode_prompt(case.messages[:-1]) != encoded.input_ids[:start]:
        return "the tokens before the last answer are not those that the model is given when it writes it"
    return None


def _reference(tokenizer: ChatTokenizer, case: _Case) -> str | None:
    return (
        None if tokenizer.matches_reference(case.messages, case.encoded) else "the ids differ from those of the genuine template"
    )


_TESTS: dict[str, Test] = {
    "beginning of sequence not doubled": _bos_once,
    "mask covers exactly the answers": _mask_exact,
    "end of turn trained": _end_trained,
    "nothing trained after the last answer": _nothing_after,
    "system text present": _system_present,
    "user texts present": _users_present,
    "answers decode back exactly": _answers_decode,
    "token ids equal to the genuine template's": _reference,
}


def _tails(cases: Sequence[_Case]) -> Check:
    """What follows the last answer must not depend on the conversation."""
    tails = {tuple(case.encoded.input_ids[case.encoded.answers[-1][1] :]) for case in cases}
    return Check(
        name="the same end after every conversation",
        passed=len(tails) == 1,
        detail=f"{len(cases)} conversations" if len(tails) == 1 else f"{len(tails)} different ends",
    )


def _injection(tokenizer: ChatTokenizer) -> Check:
    """The names of the tokenizer's own control tokens, inside every turn's text, add no control token."""
    name = "control tokens in texts stay text"
    harmless = tokenizer.encode(conversation("a", "b", "c", "d", system="e"))
    names = sorted({tokenizer.decode([token]) for token in harmless.input_ids if tokenizer.is_control(token)})
    text = f"x{''.join(names)}y {' '.join(names)}\n{names[0]}"
    hostile = tokenizer.encode(conversation(text, text, text, text, system=text))
    counts = [sum(tokenizer.is_control(token) for token in encoded.input_ids) for encoded in (harmless, hostile)]
    if counts[0] != counts[1]:
        return Check(name=name, passed=False, detail=f"{counts[1] - counts[0]} of {' '.join(names)} became control tokens")
    if tokenizer.facts()["plain_text_markers"]:
        return Check(
            name=name,
            passed=True,
            detail="control tokens do; this family writes [INST] as plain text, which no tokenizer can tell apart",
        )
    return Check(name=name, passed=True, detail=" ".join(names))
