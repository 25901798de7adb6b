"""The one place where boto3 sends a Bedrock request. Calls block: the caller runs them in threads.

boto3's hidden attempts are off, since each would be paid, and its pool and read timeout are raised: the defaults
(10 connections, 60 s) would cut slow generations off and buy them again.
"""

from __future__ import annotations

import functools
import json
import os
from typing import Any

import boto3
import botocore.config
import botocore.exceptions
import botocore.parsers

from tunemill.errors import ConfigError
from tunemill.llm.config import ModelConfig
from tunemill.llm.providers.bedrock import region_of
from tunemill.llm.providers.failures import failure
from tunemill.llm.request import Failure, WireRequest, WireResponse

__all__ = ["check_credentials", "send"]

_ERRORS = (botocore.exceptions.BotoCoreError, botocore.parsers.ResponseParserError)
_NEVER_SENT = (
    botocore.exceptions.ConnectTimeoutError,
    botocore.exceptions.EndpointConnectionError,
    botocore.exceptions.ProxyConnectionError,
)


def send(model: ModelConfig, wire: WireRequest, *, pool: int = 64) -> WireResponse | Failure:
    """Send ``wire`` as it stands and return the raw response, or a Failure where there was none.

    Thread-safe. ``pool`` is the number of connections that the process keeps to one endpoint.
    """
    client = _client(region_of(model), model.base_url, model.timeout_s, pool)
    try:
        if wire.operation == "converse":
            return _parsed(client.converse(modelId=model.model, **json.loads(wire.body)))
        response = client.invoke_model(
            modelId=model.model,
            body=wire.body,
            contentType=wire.headers["content-type"],
            accept=wire.headers["accept"],
        )
        return WireResponse(status=200, headers=response["ResponseMetadata"]["HTTPHeaders"], body=response["body"].read())
    except botocore.exceptions.ClientError as error:
        return _refusal(error)
    except _ERRORS as error:
        return _unanswered(error, model.timeout_s)


def check_credentials(model: ModelConfig) -> None:
    """ConfigError where boto3 finds no credentials; reads files and the environment, calls nobody but the metadata service."""
    if "AWS_BEARER_TOKEN_BEDROCK" not in os.environ and boto3.session.Session().get_credentials() is None:
        ways = "set AWS_PROFILE, AWS_BEARER_TOKEN_BEDROCK, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise ConfigError(f"models.{model.name}: no AWS credentials: {ways}")


@functools.lru_cache(maxsize=64)
def _client(region: str, endpoint_url: str | None, timeout_s: float, pool: int) -> Any:
    config = botocore.config.Config(
        retries={"total_max_attempts": 1},
        max_pool_connections=pool,
        read_timeout=timeout_s,
        connect_timeout=min(timeout_s, 20.0),
    )
    # a session of its own: the default one is not safe to make clients from several threads
    return boto3.session.Session().client("bedrock-runtime", region_name=region, endpoint_url=endpoint_url, config=config)


def _unanswered(error: Exception, timeout_s: float) -> Failure:
    """What it means that no response came: never sent, given up waiting, or cut off (perhaps paid)."""
    what = f"{type(error).__name__}: {error}"
    if isinstance(error, botocore.exceptions.ReadTimeoutError):
        return failure("timeout", f"no answer within {timeout_s:g} s", status=None)
    if isinstance(error, (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError)):
        return failure("auth", f"AWS credentials: {error}", status=None)
    if isinstance(error, botocore.exceptions.ParamValidationError):
        return failure("rejected", f"boto3 refused the request: {error}", status=None)
    if isinstance(error, _NEVER_SENT):
        return failure("connection", what, status=None)
    return failure("bad_answer", f"the connection closed without a whole answer ({what})", status=None)


def _parsed(response: dict[str, Any]) -> WireResponse:
    """boto3 has parsed Converse's body already; what the journal keeps is the same JSON again."""
    metadata = response.pop("ResponseMetadata")
    body = json.dumps(response, ensure_ascii=False, separators=(",", ":"), default=str).encode()
    return WireResponse(status=int(metadata["HTTPStatusCode"]), headers=metadata["HTTPHeaders"], body=body)


def _refusal(error: Any) -> WireResponse:
    """An error response as it looked on the wire."""
    metadata, inside = error.response.get("ResponseMetadata", {}), error.response.get("Error", {})
    body = json.dumps({"__type": inside.get("Code", ""), "message": inside.get("Message", str(error))}).encode()
    return WireResponse(status=int(metadata.get("HTTPStatusCode", 500)), headers=dict(metadata.get("HTTPHeaders", {})), body=body)
