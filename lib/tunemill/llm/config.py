"""How a model is called: provider, address, sampling parameters, limits and price.

Only descriptions live here. What a provider takes and how it is spelled on the wire is in ``providers/``;
`tunemill.llm.providers.check_model` refuses, before any call, what a provider would refuse.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from tunemill.config import operational
from tunemill.errors import ConfigError

__all__ = ["Limits", "ModelConfig", "Params", "Price", "ProviderName"]

ProviderName = Literal["openai", "azure", "bedrock", "gemini", "anthropic", "embedded"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Params:
    """Sampling parameters in common names; each provider translates them to its own."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Randomness of the sampling; null leaves the server's default."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Sample from the smallest set of tokens with this total probability; null leaves the server's default."""
    top_k: Annotated[int, Field(ge=1)] | None = None
    """Sample from the k likeliest tokens; null leaves the server's default."""
    max_tokens: Annotated[int, Field(ge=1)] = 200
    """Longest answer in tokens, hidden reasoning included where a model does some."""
    stop: tuple[str, ...] = ()
    """Texts at which the answer ends."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Seed of sample 0 (sample k takes seed + k); null derives one from each request, where the server takes a seed."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Penalty on tokens that already occurred."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Penalty on tokens in proportion to how often they occurred."""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    """Anything else of the provider, merged into the body of the request as it stands; null removes a key."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What the account allows, shared by every job and node."""

    rpm: Annotated[float, Field(gt=0)] | None = None
    """Requests per window (a minute); null is unlimited."""
    tpm: Annotated[float, Field(gt=0)] | None = None
    """Input and output tokens together per window; null is unlimited."""
    input_tpm: Annotated[float, Field(gt=0)] | None = None
    """Input tokens per window; null is unlimited."""
    output_tpm: Annotated[float, Field(gt=0)] | None = None
    """Output tokens per window; null is unlimited."""
    concurrency: Annotated[int, Field(ge=1)] = 64
    """Calls in flight at once, over the whole cluster; the most that the adaptive control will use."""
    window_s: Annotated[float, Field(gt=0)] = 60.0
    """Length of the window of the limits in seconds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Price:
    """USD per million tokens."""

    input: Annotated[float, Field(ge=0)] = 0.0
    """USD per million input tokens."""
    output: Annotated[float, Field(ge=0)] = 0.0
    """USD per million output tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One model as one account calls it."""

    name: str
    """Name of this entry in tables, plots and messages."""
    provider: ProviderName
    """Whose wire format is spoken; openai also means any OpenAI-compatible server (see base_url)."""
    model: str = ""
    """The provider's name of the model (Azure: the deployment); the embedded provider has one and needs none."""
    base_url: str | None = None
    """Address of the server; null is the provider's own. Azure needs it: https://NAME.openai.azure.com."""
    api_key_env: str | None = None
    """Environment variable with the key; null is the provider's usual one (none for a server given by base_url)."""
    account: str = "default"
    """Who is billed; limits are shared per (provider, account, region, model)."""
    region: str | None = None
    """AWS region of Bedrock; null is AWS_REGION or AWS_DEFAULT_REGION."""
    api: Literal["auto", "invoke", "converse"] = "auto"
    """Bedrock API: invoke has a body format per model family, converse one for all; auto picks invoke for the older families."""
    api_version: str = "2024-10-21"
    """Azure OpenAI's api-version."""
    params: Params = dataclasses.field(default_factory=Params)
    """Sampling parameters."""
    context_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest prompt and answer together in tokens; null leaves that to the server."""
    task: Literal["chat", "embed"] = "chat"
    """What is asked of the model: an answer to messages, or vectors of texts."""
    limits: Limits = operational(factory=Limits)
    """What the account allows."""
    price: Price = operational(factory=Price)
    """What tokens cost."""
    timeout_s: Annotated[float, Field(gt=0)] = operational(300.0)
    """Seconds without an answer after which a call is given up (it may still have been billed)."""

    def __post_init__(self) -> None:
        """Refuse an entry without a name or a model."""
        if not self.name:
            raise ConfigError("models: name is empty, should be a short name for this model")
        if not self.model and self.provider != "embedded":
            raise ConfigError(f"models.{self.name}: model is empty, should be the provider's name of the model")
