"""The dataset card: how the rows were made, what was dropped and why, and whose licences to check."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from tunemill.store import Manifest

__all__ = ["CardFacts", "render"]

_TERMS = {
    "openai": "OpenAI's terms of use (output and competing models): https://openai.com/policies/",
    "azure": "Microsoft's product terms for Azure OpenAI: https://www.microsoft.com/licensing/terms/",
    "bedrock": "AWS service terms and the model vendor's licence: https://aws.amazon.com/service-terms/",
    "gemini": "Gemini API additional terms: https://ai.google.dev/gemini-api/terms",
    "anthropic": "Anthropic's commercial terms: https://www.anthropic.com/legal/commercial-terms",
    "embedded": "SmolLM2's model card (Apache-2.0 when this was written): https://huggingface.co/HuggingFaceTB",
}
_RECIPE_SECTIONS = ("generate", "clean", "embed", "dedup", "split")
# What names a machine, an account or a folder of the user's stays out of a card that may become public.
_PRIVATE = frozenset(
    {"base_url", "api_key_env", "account", "journal", "cache", "output", "path", "file", "limits", "workers", "device"}
)
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card states."""

    name: str
    config: Mapping[str, Any]
    """``run.yaml``."""
    stages: Sequence[Manifest]
    """Finished stages in order."""
    splits: Mapping[str, Mapping[str, int]]
    """Rows of each split by label; the label is empty where there is none."""
    columns: Mapping[str, str]
    """Exported columns and their types."""


def render(facts: CardFacts) -> str:
    """The README.md of the dataset: metadata for the hub, then text."""
    parts = [
        _front(facts),
        f"# {facts.name}\n",
        _origin(facts),
        _splits(facts),
        _funnel(facts),
        _columns(facts),
        _licences(facts),
        _recipe(facts),
    ]
    return "\n".join(parts)


def _front(facts: CardFacts) -> str:
    rows = sum(sum(labels.values()) for labels in facts.splits.values())
    meta: dict[str, Any] = {
        "pretty_name": facts.name,
        "size_categories": [next((name for limit, name in _SIZES if rows < limit), "n>10M")],
        "tags": ["tunemill", *(["synthetic"] if facts.config.get("generate") else [])],
        "annotations_creators": ["machine-generated" if facts.config.get("generate") else "found"],
    }
    if _labels(facts):
        meta["task_categories"] = ["text-classification"]
    return f"---\n{yaml.safe_dump(meta, sort_keys=False, allow_unicode=True)}---\n"


def _origin(facts: CardFacts) -> str:
    generate = facts.config.get("generate")
    if not generate:
        return "The rows are the owner's own, filtered and split with tunemill.\n"
    models = ", ".join(f"{m.get('model') or m['name']} ({m['provider']})" for m in generate.get("models") or [])
    lines = [
        "The texts were **written by language models** and filtered and split with tunemill; no person checked each of them.\n",
        f"- Prompt: {_code(generate.get('template') or 'the rows of the input')}",
        f"- Models: {models}",
    ]
    if generate.get("label"):
        lines.append(f"- Label: the `{generate['label']}` that the prompt asked for, not one that was read from the answer")
    return "\n".join(lines) + "\n"


def _splits(facts: CardFacts) -> str:
    labels = _labels(facts)
    head = ["split", "rows", *labels]
    rows = [
        [name, f"{sum(counts.values()):,}", *(f"{counts.get(label, 0):,}" for label in labels)]
        for name, counts in facts.splits.items()
    ]
    note = "No group of near-duplicates stands in two splits.\n" if any(m.stage == "dedup" for m in facts.stages) else ""
    return f"## Rows\n\n{_table(head, rows)}\n\n{note}"


def _funnel(facts: CardFacts) -> str:
    rows = [
        [
            m.stage,
            f"{m.rows_in:,}",
            f"{m.rows_kept:,}",
            ", ".join(f"{reason} {n:,}" for reason, n in m.rows_dropped.items()) or "none",
        ]
        for m in facts.stages
        if m.stage in _RECIPE_SECTIONS
    ]
    return f"## What each stage kept\n\n{_table(['stage', 'rows in', 'kept', 'dropped'], rows)}\n"


def _columns(facts: CardFacts) -> str:
    return f"## Columns\n\n{_table(['column', 'type'], [[f'`{name}`', kind] for name, kind in facts.columns.items()])}\n"


def _licences(facts: CardFacts) -> str:
    lines = [f"- [ ] {line}" for line in dict.fromkeys(_terms(facts))]
    return "\n".join(
        ["## Licences to check before publishing\n", "This card names no licence: choose one after checking these.\n", *lines, ""]
    )


def _terms(facts: CardFacts) -> Iterator[str]:
    generate = facts.config.get("generate") or {}
    for model in generate.get("models") or []:
        yield f"**{model.get('model') or model['name']}**, which wrote texts: {_TERMS.get(model['provider'], 'its licence')}"
    if facts.config.get("input"):
        yield "**The input rows**: the licence and the consent under which they were collected"
    embed = next((m for m in facts.stages if m.stage == "embed"), None)
    if embed is not None:
        name = embed.details.get("model") or embed.config.get("model")
        yield f"**{name}**, whose vectors decided on near-duplicates (no text of it is in the data): its model card"


def _recipe(facts: CardFacts) -> str:
    shown = {name: _public(section) for name in _RECIPE_SECTIONS if (section := facts.config.get(name))}
    seed = (facts.config.get("run") or {}).get("seed", 0)
    versions = facts.stages[-1].versions if facts.stages else {}
    made = ", ".join(f"{name} {version}" for name, version in versions.items())
    text = yaml.safe_dump({"run": {"seed": seed}, **shown}, sort_keys=False, allow_unicode=True, width=100)
    return f"## Recipe\n\n```yaml\n{text}```\n\nMade with {made}.\n"


def _public(value: Any) -> Any:
    """A section without private keys, empty values and defaults that say nothing."""
    if isinstance(value, Mapping):
        inner = {key: _public(item) for key, item in value.items() if key not in _PRIVATE}
        return {key: item for key, item in inner.items() if item not in (None, {}, [], "")}
    return [_public(item) for item in value] if isinstance(value, list) else value


def _labels(facts: CardFacts) -> list[str]:
    return sorted({label for counts in facts.splits.values() for label in counts if label})


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in cells)


def _code(text: str) -> str:
    return "`" + " ".join(text.replace("`", "'").split()) + "`"
