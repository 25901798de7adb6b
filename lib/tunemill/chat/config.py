"""What the template stage can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from tunemill.config import operational
from tunemill.errors import ConfigError

__all__ = ["ConversationRules", "RowFormat", "TemplateConfig"]

RowFormat = Literal["auto", "sharegpt", "messages", "alpaca", "prompt_completion", "text"]


@dataclass(frozen=True, kw_only=True)
class ConversationRules:
    """How a row becomes messages (the part of the config that the reading of rows needs)."""

    format: RowFormat = "auto"
    """How rows are written; auto looks at the columns of each row (conversations, messages, instruction, prompt, text)."""
    task: Literal["classify", "generate"] | None = None
    """For rows that are no conversations. classify: user={text}, assistant={label}; generate: user={prompt},
    assistant={text}. null: classify when a row has a label, otherwise generate."""
    turns: Literal["first", "all"] = "all"
    """first keeps a conversation up to the first answer, all keeps every turn."""
    consecutive: Literal["merge", "refuse"] = "merge"
    """Turns of the same role in a row: merge joins them with a blank line, refuse drops the row (bad_roles)."""
    trailing_user: Literal["cut", "refuse"] = "cut"
    """A conversation that ends without an answer: cut leaves the last user turn out, refuse drops the row (no_answer)."""
    system: str | None = None
    """System text for rows that carry none."""


@dataclass(frozen=True, kw_only=True)
class TemplateConfig(ConversationRules):
    """Conversations to token ids and a loss weight for each token, in the model's own chat template."""

    tokenizer: str | None = None
    """A hub name, a local folder, embedded/smollm2-135m, or mistral-common/v1, v2, v3, v7, tekken or any file that comes
    with mistral-common. In a pipeline it defaults to finetune.base_model."""
    max_length: Annotated[int, Field(ge=8)] = 4096
    """Longest example in tokens, template included."""
    too_long: Literal["drop", "truncate"] = "drop"
    """drop leaves longer examples out (reason too_long); truncate leaves out whole exchanges at the end until the rest fits,
    so that every example still ends with a complete answer, and drops what does not fit even then."""
    prompt_loss_weight: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Loss weight of the tokens before answers (template, system and user texts); 0.01 to 0.1 helps with short answers."""
    proof_rows: Annotated[int, Field(ge=0)] = operational(64)
    """Rows of the input that the template proof is run on, besides its own probes."""
    show: Annotated[int, Field(ge=0, le=20)] = operational(0)
    """At the end print this many examples (at most 20) with the trained tokens coloured."""

    def __post_init__(self) -> None:
        if self.tokenizer is not None and not self.tokenizer.strip():
            raise ConfigError("template.tokenizer is empty; name the model's tokenizer, such as mistral-common/v3")
        if self.system is not None and not self.system.strip():
            raise ConfigError("template.system is blank; leave it out or give the text")
