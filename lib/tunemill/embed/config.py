"""What the embed stage can be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from tunemill.config import operational
from tunemill.errors import ConfigError
from tunemill.llm.config import Limits, Price

__all__ = ["ApiConfig", "EmbedConfig", "Precision"]

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class ApiConfig:
    """How an embedding API is called, and what it may cost."""

    base_url: str | None = None
    """Address of the server; null is the provider's own. Azure needs it: https://NAME.openai.azure.com."""
    api_key_env: str | None = None
    """Environment variable with the key; null is the provider's usual one."""
    account: str = "default"
    """Who is billed; limits are shared per (provider, account, region, model)."""
    region: str | None = None
    """AWS region of Bedrock; null is AWS_REGION or AWS_DEFAULT_REGION."""
    api_version: str = "2024-10-21"
    """Azure OpenAI's api-version."""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Anything else of the provider, merged into the body of the request, such as {dimensions: 1024}."""
    texts_per_call: Annotated[int, Field(ge=1, le=2048)] = 128
    """Most texts in one call; never more than the provider takes."""
    limits: Limits = operational(factory=Limits)
    """What the account allows."""
    price: Price = operational(factory=Price)
    """What tokens cost."""
    budget_usd: Annotated[float, Field(gt=0)] | None = operational(None)
    """Hard cap on spending in USD; rows that it holds back are listed as over_budget and run when it is raised."""
    journal: str | None = operational(None)
    """Where every raw answer is kept, so that none is paid twice: a folder, s3://... or dynamodb://TABLE; null is journal/."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Texts to unit vectors. Documented models: all-MiniLM-L6-v2 (fast, 384 d) and thenlper/gte-large (1024 d)."""

    model: str = "all-MiniLM-L6-v2"
    """Any sentence-transformers model: a hub name or a local folder; with an API provider, its model name."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; null takes its main branch."""
    provider: Literal["local", "openai", "azure", "bedrock"] = "local"
    """local runs the model on the cluster's CPUs or GPUs; the others call an embedding API."""
    text_column: str = "text"
    """The column that holds the text."""
    prefix: str | None = None
    """Put before every text ('query: ', 'passage: '); null takes the model's own default prompt, '' none."""
    max_length: Annotated[int, Field(ge=4)] | None = None
    """Tokens after which a text is cut; null takes the model's own limit. Cut texts are counted in the manifest."""
    precision: Precision = "auto"
    """auto: bf16 where the processor computes it and where it holds (cosine to fp32 >= 0.999 on a sample), else fp32."""
    output: Literal["float32", "float16"] = "float32"
    """Element type of the stored vectors."""
    device: Literal["auto", "cpu", "cuda"] = operational("auto")
    """auto takes a GPU for each worker where the cluster has some."""
    workers: Annotated[int, Field(ge=1)] | None = operational(None)
    """Model copies that run at once; null fits them to the cluster."""
    batch_tokens: Annotated[int, Field(ge=64)] | None = operational(None)
    """Tokens in one forward pass; null takes 2048 on a CPU and 65536 on a GPU."""
    cache: str | None = operational(None)
    """Folder (local or s3://) of vectors by text, model and settings: later runs embed only new texts."""
    api: ApiConfig = field(default_factory=ApiConfig)
    """Only for an API provider."""

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise ConfigError("embed.model is empty; name a sentence-transformers model, such as all-MiniLM-L6-v2")
        if not self.text_column:
            raise ConfigError("embed.text_column is empty; name the column that holds the text")
        if self.provider != "local" and self.precision not in ("auto", "fp32"):
            raise ConfigError(f"embed.precision is {self.precision}: only provider local computes it; use auto")
        if self.provider != "local" and self.cache is not None:
            raise ConfigError("embed.cache: only for provider local; paid vectors are kept in the journal (embed.api.journal)")
