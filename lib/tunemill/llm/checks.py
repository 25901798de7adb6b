"""What is checked and gathered before the first call of a job: models, keys, prices, and a journal that all nodes see."""

from __future__ import annotations

import dataclasses
import os
import uuid
from collections.abc import Mapping
from typing import Any

from tunemill.errors import ConfigError
from tunemill.llm.config import ModelConfig
from tunemill.llm.journal import Journal
from tunemill.llm.providers import check_model, provider_for

__all__ = ["Environment", "check_models", "check_shared", "environment_for", "placed"]

_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION")
_PLACES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_DYNAMODB", "AWS_PROFILE", "TUNEMILL_CWD")


@dataclasses.dataclass(frozen=True)
class Environment:
    """Variables that workers on other nodes need. Never shown: some are secrets."""

    values: Mapping[str, str]

    def __repr__(self) -> str:
        return "environment"


def placed(model: ModelConfig, servers: int) -> ModelConfig:
    """The embedded model's server is started here, one for each entry, so that every worker calls the same one."""
    if model.provider != "embedded" or model.base_url is not None:
        return model
    from tunemill.llm.embedded_server import embedded_base_url

    return dataclasses.replace(model, base_url=embedded_base_url(model.name, servers))


def check_models(models: tuple[ModelConfig, ...], budget_usd: float | None) -> None:
    """ConfigError for a model, a key or a price that can not work."""
    for model in models:
        check_model(model)
        if model.provider == "bedrock":
            from tunemill.llm.providers.bedrock_client import check_credentials

            check_credentials(model)
        free = model.provider == "embedded" or (model.provider == "openai" and model.base_url is not None)
        if budget_usd is not None and not free and model.price.input == model.price.output == 0:
            raise ConfigError(
                f"models.{model.name}: price is missing, but budget_usd caps spending; give USD per million tokens: "
                "price: {input: ..., output: ...}"
            )


def check_shared(journal: Journal) -> None:
    """Refuse a journal that other nodes can not see: a file written here is looked for on every other node."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if journal.shared or len(nodes) < 2:
        return
    location = getattr(journal, "location", None)
    if location is None:
        return
    nonce = uuid.uuid4().hex
    probe = location.join(f".shared-{nonce[:8]}")
    probe.write_text(nonce)
    try:
        for node in nodes:
            seen = ray.remote(_sees).options(num_cpus=0, label_selector=None, scheduling_strategy=_on(node["NodeID"]))
            if ray.get(seen.remote(probe.path, nonce)):
                continue
            raise ConfigError(
                f"journal {journal.url}: node {node['NodeManagerAddress']} does not see this folder, so answers paid there would "
                "be lost with it; use s3://, gs://, dynamodb:// or a folder that all nodes share"
            )
    finally:
        probe.delete()


def _sees(path: str, nonce: str) -> bool:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read() == nonce
    except OSError:
        return False


def _on(node_id: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def environment_for(models: tuple[ModelConfig, ...], journal: str) -> Environment:
    """The variables that these models and this journal need on every node."""
    names = {*_PLACES}
    for model in models:
        usual = getattr(provider_for(model.provider, model.task), "usual_key", None)
        names |= {name for name in (model.api_key_env, usual) if name}
    if journal.startswith(("s3://", "dynamodb://")) or any(model.provider == "bedrock" for model in models):
        names |= {*_SECRETS}
    return Environment({name: os.environ[name] for name in sorted(names) if name in os.environ})
