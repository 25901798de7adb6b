"""InvokeModel's bodies by model family, as the mock understands them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from mock_provider.formats.anthropic import MESSAGE_FIELDS, check_message_body, message
from mock_provider.formats.base import NUMBER, Call, Problem, check

__all__ = ["FAMILIES", "Family", "family_of"]

Parsed = tuple[list[str], int, Mapping[str, Any] | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One body format."""

    name: str
    pattern: str
    parse: Callable[[Any], Parsed]
    answer: Callable[[Call, str, bool, int], dict[str, Any]]
    embeds: bool = False


def family_of(model: str) -> Family | None:
    """By model id, with or without a region prefix."""
    name = re.sub(r"^(us|eu|apac)\.", "", model)
    return next((family for family in FAMILIES.values() if re.match(family.pattern, name)), None)


def _prompt(text: str, *, start: str = "", end: str = "") -> list[str]:
    if not text.startswith(start) or not text.rstrip().endswith(end):
        raise Problem("invalid", f"Invalid prompt: prompt must start with {start!r} and end with {end!r}")
    return [text]


def _parse_j2(body: Any) -> Parsed:
    fields = {"prompt": str, "maxTokens": int, "temperature": NUMBER, "topP": NUMBER, "stopSequences": list}
    penalties = ("countPenalty", "presencePenalty", "frequencyPenalty")
    check(body, {**fields, **dict.fromkeys(penalties, dict), "numResults": int}, required=("prompt",))
    for name in penalties:
        check(body.get(name, {}), {"scale": NUMBER, "applyToNumbers": bool}, where=f"{name}.")
    return [body["prompt"]], body.get("maxTokens", 16), None


def _answer_j2(call: Call, text: str, done: bool, tokens: int) -> dict[str, Any]:
    marks = [{"generatedToken": {"token": "x"}}]
    reason: dict[str, Any] = {"reason": "endoftext"} if done else {"reason": "length", "length": call.max_tokens}
    completion = {"data": {"text": text, "tokens": marks * tokens}, "finishReason": reason}
    return {"id": 1, "prompt": {"text": call.texts[0], "tokens": marks * call.input_tokens}, "completions": [completion]}


def _parse_titan(body: Any) -> Parsed:
    check(body, {"inputText": str, "textGenerationConfig": dict}, required=("inputText",))
    config = body.get("textGenerationConfig", {})
    check(
        config,
        {"maxTokenCount": int, "temperature": NUMBER, "topP": NUMBER, "stopSequences": list},
        where="textGenerationConfig.",
    )
    return [body["inputText"]], config.get("maxTokenCount", 512), None


def _answer_titan(call: Call, text: str, done: bool, tokens: int) -> dict[str, Any]:
    result = {"tokenCount": tokens, "outputText": text, "completionReason": "FINISH" if done else "LENGTH"}
    return {"inputTextTokenCount": call.input_tokens, "results": [result]}


def _parse_claude2(body: Any) -> Parsed:
    fields = {"prompt": str, "max_tokens_to_sample": int, "temperature": NUMBER, "top_p": NUMBER, "top_k": int}
    check(body, {**fields, "stop_sequences": list, "anthropic_version": str}, required=("prompt", "max_tokens_to_sample"))
    if "\n\nHuman:" not in body["prompt"]:
        raise Problem("invalid", 'prompt must start with "\n\nHuman:" turn')
    return _prompt(body["prompt"], end="\n\nAssistant:"), body["max_tokens_to_sample"], None


def _answer_claude2(call: Call, text: str, done: bool, tokens: int) -> dict[str, Any]:
    stop = {"stop_reason": "stop_sequence", "stop": "\n\nHuman:"} if done else {"stop_reason": "max_tokens", "stop": None}
    return {"type": "completion", "completion": text, **stop}


def _parse_claude3(body: Any) -> Parsed:
    fields = {**MESSAGE_FIELDS, "anthropic_version": str}
    check(body, fields, required=("anthropic_version", "max_tokens", "messages"))
    if body["anthropic_version"] != "bedrock-2023-05-31":
        raise Problem("invalid", "anthropic_version: unknown")
    texts, schema = check_message_body(body)
    return texts, body["max_tokens"], schema


def _answer_claude3(call: Call, text: str, done: bool, tokens: int) -> dict[str, Any]:
    return message(call, text, "stop" if done else "length", tokens)


def _parse_llama(mark: str) -> Callable[[Any], Parsed]:
    def parse(body: Any) -> Parsed:
        fields = {"prompt": str, "max_gen_len": int, "temperature": NUMBER, "top_p": NUMBER}
        check(body, fields, required=("prompt",))
        return _prompt(body["prompt"], start=mark), body.get("max_gen_len", 512), None

    return parse


def _answer_llama(call: Call, text: str, done: bool, tokens: int) -> dict[str, Any]:
    counts = {"prompt_token_count": call.input_tokens, "generation_token_count": tokens}
    return {"generation": text, **counts, "stop_reason": "stop" if done else "length"}


def _parse_mistral(body: Any) -> Parsed:
    fields = {"prompt": str, "max_tokens": int, "stop": list, "temperature": NUMBER, "top_p": NUMBER, "top_k": int}
    check(body, fields, required=("prompt",))
    return _prompt(body["prompt"], start="<s>[INST] ", end="[/INST]"), body.get("max_tokens", 512), None


def _answer_mistral(call: Call, text: str, done: bool, tokens: int) -> dict[str, Any]:
    return {"outputs": [{"text": text, "stop_reason": "stop" if done else "length"}]}


def _parse_titan_embedding(body: Any) -> Parsed:
    check(body, {"inputText": str, "dimensions": int, "normalize": bool, "embeddingTypes": list}, required=("inputText",))
    return [body["inputText"]], 0, None


def _parse_cohere_embedding(body: Any) -> Parsed:
    check(body, {"texts": list, "input_type": str, "truncate": str, "embedding_types": list}, required=("texts", "input_type"))
    if not 1 <= len(body["texts"]) <= 96:
        raise Problem("invalid", "texts: expected 1 to 96 items")
    return body["texts"], 0, None


def _no_text(call: Call, text: str, done: bool, tokens: int) -> dict[str, Any]:
    return {}


_ALL = (
    Family(name="j2", pattern=r"ai21\.j2-", parse=_parse_j2, answer=_answer_j2),
    Family(name="titan", pattern=r"amazon\.titan-text", parse=_parse_titan, answer=_answer_titan),
    Family(name="claude2", pattern=r"anthropic\.claude-(v2|instant)", parse=_parse_claude2, answer=_answer_claude2),
    Family(name="claude3", pattern=r"anthropic\.claude-", parse=_parse_claude3, answer=_answer_claude3),
    Family(name="llama2", pattern=r"meta\.llama2", parse=_parse_llama("<s>[INST] "), answer=_answer_llama),
    Family(name="llama3", pattern=r"meta\.llama3", parse=_parse_llama("<|begin_of_text|>"), answer=_answer_llama),
    Family(name="mistral", pattern=r"mistral\.", parse=_parse_mistral, answer=_answer_mistral),
    Family(name="embed", pattern=r"amazon\.titan-embed", parse=_parse_titan_embedding, answer=_no_text, embeds=True),
    Family(name="embed-cohere", pattern=r"cohere\.embed", parse=_parse_cohere_embedding, answer=_no_text, embeds=True),
)
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}
