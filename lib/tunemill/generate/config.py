"""What the generate stage can be told."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from tunemill.config import essential, fingerprint, operational
from tunemill.errors import ConfigError
from tunemill.llm.config import ModelConfig

__all__ = ["GenerateConfig", "template_names"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Prompts from a template, answered by every model."""

    rows: Annotated[int, Field(ge=1)] = 1000
    """Prompts for each model; with --input every row of the file is one prompt and this is not used."""
    template: str = ""
    """The prompt, with {name} where a variable (or a column of --input) goes; {{ and }} are plain braces."""
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Values for each name: a list, or {file: topics.json, pick: 3, join: ", "} (a topics file, a JSON list or lines of text)."""
    label: str | None = None
    """The variable (or column) that is the label; its values are drawn equally often."""
    system: str | None = None
    """System text of every prompt, taken as it stands."""
    samples: Annotated[int, Field(ge=1)] = 1
    """Answers to each prompt from each model."""
    models: tuple[ModelConfig, ...] = ()
    """The models; each one gets every prompt."""
    response_schema: Mapping[str, Any] | None = None
    """JSON schema that answers must follow, where the server supports it."""
    budget_usd: Annotated[float, Field(gt=0)] | None = operational(None)
    """Hard cap on spending in USD; what it holds back is listed as over_budget and runs when it is raised."""
    journal: str | None = operational(None)
    """Where every attempt and raw answer is kept: a folder, s3://... or dynamodb://TABLE; null is journal/ beside the answers."""
    workers: Annotated[int, Field(ge=1)] | None = operational(None)
    """Calling actors; null fits them to the cluster."""
    replay_failed: bool = operational(False)
    """Call again what failed in an earlier run (gave_up, rejected, too_long, ...)."""

    def __post_init__(self) -> None:
        names = template_names(self.template)
        for name, values in self.variables.items():
            _check_variable(name, values)
            if self.template and name not in names:
                raise ConfigError(
                    f"generate.variables.{name}: the template has no {{{name}}}; put it there or remove the variable "
                    f"(the template has {_listed(names)})"
                )
        if self.label is not None and self.template and self.label not in names and self.variables:
            raise ConfigError(f"generate.label is {self.label!r}, should be a variable of the template ({_listed(names)})")
        if isinstance(label := self.variables.get(self.label or ""), Mapping) and label.get("pick", 1) != 1:
            raise ConfigError(f"generate.variables.{self.label}.pick is {label['pick']}, should be 1: a label is one value")
        _check_models(self.models)

    def check_variables(self) -> None:
        """Raise ConfigError unless every name of the template has values (a plan is made from them, not from a file)."""
        if not self.template:
            raise ConfigError(
                'generate.template is missing; write the prompt, such as "Write a {sentiment} sentence about {topics}."'
            )
        names = template_names(self.template)
        for name in names:
            if name not in self.variables:
                raise ConfigError(f"generate.variables.{name} is missing: the template has {{{name}}}; give its values")
        if self.label is not None and self.label not in names:
            raise ConfigError(f"generate.label is {self.label!r}, should be a variable of the template ({_listed(names)})")

    def check_models(self) -> None:
        """Raise ConfigError when there is no model to call."""
        if not self.models:
            raise ConfigError("generate.models is empty; name at least one model, such as {name: small, provider: embedded}")


def template_names(template: str) -> tuple[str, ...]:
    """The names in a template's braces, each once, in order; ConfigError for braces that are not {name}."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"generate.template: {error}; write {{{{ and }}}} for plain braces") from error
    names: dict[str, None] = {}
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if not name.isidentifier() or form or conversion:
            shown = f"{name}{'!' + conversion if conversion else ''}{':' + form if form else ''}"
            raise ConfigError(
                f"generate.template: {{{shown}}} is not a variable; write {{name}}, or {{{{ and }}}} for plain braces"
            )
        names[name] = None
    return tuple(names)


def _check_variable(name: str, values: Any) -> None:
    path = f"generate.variables.{name}"
    if isinstance(values, Mapping):
        unknown = set(values) - {"file", "pick", "join"}
        if unknown:
            raise ConfigError(f"{path}: unknown key {min(unknown)!r}; known: file, pick, join")
        if not isinstance(values.get("file"), str):
            raise ConfigError(f"{path}.file is missing; name a topics file (.json) or a file with one value on each line")
        pick = values.get("pick", 1)
        if not isinstance(pick, int) or isinstance(pick, bool) or pick < 1:
            raise ConfigError(f"{path}.pick is {pick!r}, should be a whole number from 1")
        if not isinstance(values.get("join", ", "), str):
            raise ConfigError(f"{path}.join is {values['join']!r}, should be a text such as ', '")
        return
    if not isinstance(values, (list, tuple)):
        raise ConfigError(f"{path} is {values!r}, should be a list such as [x, y] or {{file: values.txt}}")
    if not values:
        raise ConfigError(f"{path} is empty; give at least one value")
    texts = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ConfigError(f"{path} holds {value!r}, should hold texts (put yes, no, on, off and null in quotes)")
        texts.append(str(value))
    repeated = next((text for text in texts if texts.count(text) > 1), None)
    if repeated is not None:
        raise ConfigError(f"{path} holds {repeated!r} twice; list each value once")


def _check_models(models: tuple[ModelConfig, ...]) -> None:
    names: set[str] = set()
    calls: dict[str, str] = {}
    for i, model in enumerate(models):
        if model.name in names:
            raise ConfigError(f"generate.models.{i}.name is {model.name!r}, which an earlier model has; names should differ")
        names.add(model.name)
        if model.task != "chat":
            raise ConfigError(f"generate.models.{i}.task is {model.task!r}, should be chat")
        same = fingerprint({k: v for k, v in essential(model).items() if k not in ("name", "account", "api_key_env")})
        if same in calls:
            raise ConfigError(
                f"generate.models.{i} ({model.name}) would make the same calls as {calls[same]}; "
                "give it other params, or use samples for more answers"
            )
        calls[same] = model.name


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "no variable"
