"""Bedrock's request bodies: one format per model family for InvokeModel, and Converse for everything.

Each builder takes common names and returns the JSON body; each reader recognises its family by the response's
own shape, so that a journalled response can be read without knowing which model gave it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from tunemill.errors import ConfigError
from tunemill.llm.config import ModelConfig, Params
from tunemill.llm.providers.anthropic import messages_body
from tunemill.llm.request import Prompt

__all__ = ["Family", "body_of", "family_of", "takes"]

Family = Literal["j2", "titan", "claude2", "claude3", "llama2", "llama3", "mistral", "converse"]

_PATTERNS: tuple[tuple[str, Family], ...] = (
    (r"ai21\.j2-", "j2"),
    (r"amazon\.titan-(?:text|tg1)", "titan"),
    (r"anthropic\.claude-(?:v1|v2|instant)", "claude2"),
    (r"anthropic\.claude-", "claude3"),
    (r"meta\.llama2-", "llama2"),
    (r"meta\.llama3-", "llama3"),
    (r"mistral\.(?:mistral-7b|mixtral|mistral-large-2402|mistral-small-2402)", "mistral"),
)
# families that Converse serves as well; auto prefers it for them
_BOTH = frozenset({"claude3", "llama3"})
_SAMPLING = ("temperature", "top_p")
_TAKES: Mapping[Family, tuple[str, ...]] = {
    "j2": (*_SAMPLING, "stop", "presence_penalty", "frequency_penalty"),
    "titan": (*_SAMPLING, "stop"),
    "claude2": (*_SAMPLING, "top_k", "stop"),
    "claude3": (*_SAMPLING, "top_k", "stop"),
    "llama2": _SAMPLING,
    "llama3": _SAMPLING,
    "mistral": (*_SAMPLING, "top_k", "stop"),
    "converse": (*_SAMPLING, "stop"),
}


def family_of(model: ModelConfig) -> Family:
    """The body format of a model id (with or without a region prefix); ConfigError where ``api: invoke`` knows none."""
    name = re.sub(r"^(?:us|eu|apac|global|us-gov|jp|au|ca)\.", "", model.model.rpartition("/")[2])
    family = next((family for pattern, family in _PATTERNS if re.match(pattern, name)), None)
    if model.api == "converse" or (model.api == "auto" and (family is None or family in _BOTH)):
        return "converse"
    if family is None:
        raise ConfigError(f"models.{model.name}: api is invoke, but the body of {model.model} is not known; use api: converse")
    return family


def takes(model: ModelConfig) -> tuple[str, ...]:
    """The common parameters that the model's body has room for (besides max_tokens)."""
    family = family_of(model)
    return (*_TAKES[family], "top_k") if family == "converse" and _claude(model) else _TAKES[family]


def body_of(family: Family, model: ModelConfig, prompt: Prompt, schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """The body before ``params.extra``."""
    if schema is not None and family not in ("claude3", "converse"):
        raise ConfigError(f"models.{model.name}: response_schema is not supported by {model.model} through InvokeModel")
    if family == "converse":
        return _converse(model, prompt, schema)
    if family == "claude3":
        return {"anthropic_version": "bedrock-2023-05-31", **messages_body(model, prompt, schema)}
    return _BUILDERS[family](model.params, prompt)


def _named(params: Params, names: Mapping[str, str]) -> dict[str, Any]:
    """The parameters that are set, under the names of the wire (wire name -> common name)."""
    pairs = [(wire, getattr(params, name)) for wire, name in names.items()]
    return {wire: list(value) if isinstance(value, tuple) else value for wire, value in pairs if value not in (None, ())}


def _j2(params: Params, prompt: Prompt) -> dict[str, Any]:
    body = {"prompt": _plain(prompt)} | _named(
        params, {"maxTokens": "max_tokens", "temperature": "temperature", "topP": "top_p", "stopSequences": "stop"}
    )
    penalties = _named(params, {"presencePenalty": "presence_penalty", "frequencyPenalty": "frequency_penalty"})
    return body | {name: {"scale": value} for name, value in penalties.items()}


def _titan(params: Params, prompt: Prompt) -> dict[str, Any]:
    names = {"maxTokenCount": "max_tokens", "temperature": "temperature", "topP": "top_p", "stopSequences": "stop"}
    return {"inputText": _plain(prompt, ("User: ", "Bot: ")), "textGenerationConfig": _named(params, names)}


def _claude2(params: Params, prompt: Prompt) -> dict[str, Any]:
    system, turns = _split(prompt)
    marks = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}
    text = system + "".join(marks[role] + content for role, content in turns) + "\n\nAssistant:"
    names = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "stop_sequences": "stop"}
    return {"prompt": text} | _named(params, {"max_tokens_to_sample": "max_tokens", **names})


def _llama2(params: Params, prompt: Prompt) -> dict[str, Any]:
    system, turns = _split(prompt)
    head = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""
    return _llama(params, _instructions(turns, head, between="</s><s>"))


def _llama3(params: Params, prompt: Prompt) -> dict[str, Any]:
    turns = [f"<|start_header_id|>{m.role}<|end_header_id|>\n\n{m.content}<|eot_id|>" for m in prompt.messages]
    text = f"<|begin_of_text|>{''.join(turns)}<|start_header_id|>assistant<|end_header_id|>\n\n"
    return _llama(params, text)


def _llama(params: Params, text: str) -> dict[str, Any]:
    return {"prompt": text} | _named(params, {"max_gen_len": "max_tokens", "temperature": "temperature", "top_p": "top_p"})


def _mistral(params: Params, prompt: Prompt) -> dict[str, Any]:
    system, turns = _split(prompt)
    text = _instructions(turns, f"{system}\n\n" if system else "", between="</s>")
    names = {"max_tokens": "max_tokens", "stop": "stop", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k"}
    return {"prompt": text} | _named(params, names)


def _converse(model: ModelConfig, prompt: Prompt, schema: Mapping[str, Any] | None) -> dict[str, Any]:
    system, turns = _split(prompt)
    body: dict[str, Any] = {"messages": [{"role": role, "content": [{"text": content}]} for role, content in turns]}
    if system:
        body["system"] = [{"text": system}]
    names = {"maxTokens": "max_tokens", "temperature": "temperature", "topP": "top_p", "stopSequences": "stop"}
    body["inferenceConfig"] = _named(model.params, names)
    if model.params.top_k is not None and _claude(model):
        body["additionalModelRequestFields"] = {"top_k": model.params.top_k}
    if schema is not None:
        if schema.get("type") != "object":
            raise ConfigError(f"models.{model.name}: response_schema has type {schema.get('type')!r}, should be object")
        spec = {"name": "answer", "description": "Give the answer in this form.", "inputSchema": {"json": schema}}
        body["toolConfig"] = {"tools": [{"toolSpec": spec}], "toolChoice": {"tool": {"name": "answer"}}}
    return body


def _claude(model: ModelConfig) -> bool:
    return "anthropic.claude" in model.model


def _split(prompt: Prompt) -> tuple[str, list[tuple[str, str]]]:
    """The system text and the other turns."""
    system = "\n\n".join(m.content for m in prompt.messages if m.role == "system")
    return system, [(m.role, m.content) for m in prompt.messages if m.role != "system"]


def _plain(prompt: Prompt, marks: tuple[str, str] = ("", "")) -> str:
    """A bare text for completion models; turns are marked only where there are several."""
    system, turns = _split(prompt)
    if len(turns) == 1:
        return "\n\n".join(part for part in (system, turns[0][1]) if part)
    lines = [marks[role == "assistant"] + content for role, content in turns]
    return "\n".join([*([system] if system else []), *lines, marks[1].rstrip()])


def _instructions(turns: Iterable[tuple[str, str]], head: str, *, between: str) -> str:
    """``<s>[INST] ... [/INST]`` with ``head`` inside the first instruction."""
    text = "<s>"
    for role, content in turns:
        text += f"[INST] {head}{content} [/INST]" if role == "user" else f" {content} {between}"
        head = "" if role == "user" else head
    return text


_BUILDERS: Mapping[Family, Callable[[Params, Prompt], dict[str, Any]]] = {
    "j2": _j2,
    "titan": _titan,
    "claude2": _claude2,
    "llama2": _llama2,
    "llama3": _llama3,
    "mistral": _mistral,
}
