"""The template stage: rows -> messages -> token ids and loss weights, in the model's own template.

The template proof runs first, on its probes and on the first rows; then every row is read, encoded,
compared with the genuine template and held against the length limit, each in its own block.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tunemill.chat.config import TemplateConfig
from tunemill.chat.conversations import COLUMNS, Conversation, read_row, recognise
from tunemill.chat.encoded import ChatTokenizer, Encoded, refused
from tunemill.chat.lengths import fit
from tunemill.chat.proof import Check, prove
from tunemill.chat.show import sample_of
from tunemill.chat.tokenizer import load
from tunemill.errors import ConfigError, DataError
from tunemill.stage import Outcome, Source, Stage, StageContext, commit_rows, write_table

__all__ = ["STAGE", "check", "check_columns", "execute", "template_rows"]

_BATCH_ROWS = 256
_CARRIED = ("split", "label", "text", "group")
_SAMPLES = 20
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_MADE = {
    "messages": _MESSAGES,
    "input_ids": pa.list_(pa.int32()),
    "loss_weights": pa.list_(pa.float32()),
    "n_tokens": pa.int32(),
    "answer_tokens": pa.int32(),
    "turns_removed": pa.int32(),
    "reason": pa.string(),
}
_DROPPED_COLUMNS = ("id", "reason", "split", "label", "n_tokens", "answer_tokens", "messages")


def execute(context: StageContext, source: Source, config: TemplateConfig) -> Outcome:
    """Prove the template, then encode every row; details carry the proof and samples, ``lengths`` the lengths."""
    tokenizer = _tokenizer(config)
    check_columns(source.columns(), config)
    dataset = source.dataset()
    rows = dataset.take(max(config.proof_rows, _SAMPLES))
    proof, samples = _prove_rows(tokenizer, rows, config)
    outcome = commit_rows(
        context,
        template_rows(dataset, config),
        rows_in=source.count(),
        kept_columns=("id", *_CARRIED, *(name for name in _MADE if name != "reason")),
        dropped_columns=_DROPPED_COLUMNS,
    )
    lengths = _lengths(context, outcome)
    if outcome.rows_kept == 0:
        raise DataError(f"no row is left to train on: {_why_none(outcome.rows_dropped, lengths, config)}")
    kept = lengths.filter(lengths["kept"])
    details = {
        "proof": [asdict(check) for check in proof],
        "tokenizer": dict(tokenizer.facts()),
        "max_length": config.max_length,
        "truncated_rows": _count_truncated(context, outcome),
        "tokens": {name: int(np.sum(kept[name].to_numpy())) for name in ("prompt_tokens", "answer_tokens", "n_tokens")},
        "samples": samples,
    }
    files = {**outcome.files, "lengths": [write_table(context, "lengths", lengths)]}
    return replace(outcome, files=files, details=details)


def check(config: TemplateConfig) -> None:
    """Before anything runs: ConfigError or TemplateError unless the template can be proven on the built-in probes."""
    prove(_tokenizer(config))


def _tokenizer(config: TemplateConfig) -> ChatTokenizer:
    if config.tokenizer is None:
        raise ConfigError("template.tokenizer is null: name the model's tokenizer, such as mistral-common/v3 or a folder")
    return _loaded(config.tokenizer, config.prompt_loss_weight)


def check_columns(columns: Sequence[str], config: TemplateConfig) -> None:
    """DataError when rows with these columns cannot be read as ``config`` says."""
    shown = ", ".join(columns)
    form = recognise(columns) if config.format == "auto" else config.format
    if form is None:
        known = "; ".join(
            " + ".join(names) if form == "prompt_completion" else " or ".join(names) for form, names in COLUMNS.items()
        )
        raise DataError(f"input has the columns {shown}; should have one of: {known}")
    if form != "text":
        return
    by_task = {"classify": ("text", "label"), "generate": ("prompt", "text")}
    needed = by_task[config.task or ("classify" if "label" in columns else "generate")]
    missing = [name for name in needed if name not in columns]
    if missing:
        hint = "" if config.task else " (rows of text need a label to classify or a prompt to generate)"
        raise DataError(f"input has the columns {shown}; should also have {' and '.join(missing)}{hint}")


def template_rows(dataset: Any, config: TemplateConfig) -> Any:
    """The lazy Dataset of encoded rows, with a ``reason`` that is null for rows to keep."""
    return dataset.map_batches(_EncodeRows(config), batch_size=_BATCH_ROWS, batch_format="pyarrow", zero_copy_batch=True)


@functools.lru_cache(maxsize=2)
def _loaded(name: str, prompt_loss_weight: float) -> ChatTokenizer:
    """One tokenizer for each worker process: loading takes up to seconds."""
    return load(name, prompt_loss_weight=prompt_loss_weight)


@dataclass(frozen=True)
class _EncodeRows:
    config: TemplateConfig

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        tokenizer = _tokenizer(self.config)
        made = [_made(*result) for result in _encode(tokenizer, rows, self.config)]
        carried = {name: table[name] for name in ("id", *_CARRIED) if name in table.column_names}
        columns = {name: pa.array([row[name] for row in made], kind) for name, kind in _MADE.items()}
        return pa.table({**carried, **columns})


def _encode(
    tokenizer: ChatTokenizer, rows: Sequence[Mapping[str, Any]], config: TemplateConfig
) -> list[tuple[Conversation, Conversation, Encoded]]:
    """For each row: what was read, what is left of it within the length limit (or a reason), its encoding."""
    read = [read_row(row, config) for row in rows]
    encoded = iter(tokenizer.encode_batch([c.messages for c in read if c.reason is None]))
    results = []
    for conversation in read:
        if conversation.reason is not None:
            results.append((conversation, conversation, refused(conversation.reason)))
            continue
        encoding = next(encoded)
        if encoding.reason is not None:
            results.append((conversation, Conversation((), encoding.reason), encoding))
            continue
        fitted = fit(tokenizer, conversation.messages, encoding, config.max_length, config.too_long)
        if fitted is None:
            results.append((conversation, Conversation((), "too_long"), encoding))
        else:
            results.append((conversation, Conversation(tuple(fitted[0])), fitted[1]))
    return results


def _made(read: Conversation, left: Conversation, encoded: Encoded) -> dict[str, Any]:
    kept = left.reason is None
    return {
        "messages": list(left.messages if kept else read.messages),
        "input_ids": np.asarray(encoded.input_ids, np.int32) if kept else None,
        "loss_weights": np.asarray(encoded.loss_weights, np.float32) if kept else None,
        "n_tokens": len(encoded.input_ids),
        "answer_tokens": sum(stop - start for start, stop in encoded.answers),
        "turns_removed": len(read.messages) - len(left.messages) if kept else 0,
        "reason": left.reason,
    }


def _prove_rows(
    tokenizer: ChatTokenizer, rows: Sequence[Mapping[str, Any]], config: TemplateConfig
) -> tuple[list[Check], list[dict[str, Any]]]:
    conversations = [(str(row.get("id", "")), read_row(row, config)) for row in rows]
    good = [(name, conversation.messages) for name, conversation in conversations if conversation.reason is None]
    proof = prove(tokenizer, [messages for _, messages in good[: config.proof_rows]])
    encoded = tokenizer.encode_batch([messages for _, messages in good[:_SAMPLES]])
    pairs = zip(good, encoded, strict=False)
    samples = [sample_of(tokenizer, name, encoding) for (name, _), encoding in pairs if encoding.reason is None]
    return proof, samples


def _lengths(context: StageContext, outcome: Outcome) -> pa.Table:
    """id, prompt, answer and total tokens of every row that has tokens, and whether it was kept."""
    tables = []
    for kind in ("data", "dropped"):
        for name in outcome.files[kind]:
            file = context.store.folder.join(name)
            table = pq.read_table(file.path, filesystem=file.fs, columns=["id", "n_tokens", "answer_tokens"])
            kept = pa.array(np.full(len(table), kind == "data"))
            prompt = pa.array(table["n_tokens"].to_numpy() - table["answer_tokens"].to_numpy(), pa.int32())
            tables.append(table.append_column("prompt_tokens", prompt).append_column("kept", kept))
    schema = [("id", pa.string()), ("prompt_tokens", pa.int32()), ("answer_tokens", pa.int32()), ("n_tokens", pa.int32())]
    names = [name for name, _ in schema]
    everything = pa.concat_tables(tables).select([*names, "kept"])
    return everything.cast(pa.schema([*schema, ("kept", pa.bool_())])).filter(pc.greater(everything["n_tokens"], 0))


def _count_truncated(context: StageContext, outcome: Outcome) -> int:
    files = [context.store.folder.join(name) for name in outcome.files["data"]]
    tables = [pq.read_table(file.path, filesystem=file.fs, columns=["turns_removed"]) for file in files]
    return sum(int(np.count_nonzero(table["turns_removed"].to_numpy())) for table in tables)


def _why_none(dropped: Mapping[str, int], lengths: pa.Table, config: TemplateConfig) -> str:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in dropped.items())
    if "too_long" not in dropped:
        return f"all were dropped ({reasons})"
    shortest = int(np.min(lengths["n_tokens"].to_numpy()))
    return f"all were dropped ({reasons}); template.max_length is {config.max_length}, the shortest example has {shortest} tokens"


STAGE = Stage(name="template", config_type=TemplateConfig, execute=execute, check=check)
