"""What a generate section will take before it is run: calls, tokens, USD with an interval, hours at the limits.

Nobody is called, unless a pilot is asked for; a pilot's calls go through the run's journal, so the run
does not buy them again. Without a pilot the low end takes short answers (a tenth of max_tokens) and the
high end answers of max_tokens; with one, both ends are a 95 % interval around what was seen.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tunemill.config import to_plain
from tunemill.errors import ConfigError
from tunemill.generate.config import GenerateConfig
from tunemill.generate.prompts import PlannedPrompt
from tunemill.generate.rows import PlanSource, call_table
from tunemill.llm.config import ModelConfig
from tunemill.llm.request import Prompt
from tunemill.progress import Progress
from tunemill.store import Location

__all__ = ["Interval", "ModelPlan", "Pilot", "Plan", "plain_plan", "plan"]

_COUNTED_PROMPTS = 300
_MOST_LOOKED_UP = 50_000
_SHORT_ANSWER = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class Interval:
    """Low and high end of an estimate."""

    low: float
    high: float

    def times(self, factor: float) -> Interval:
        """Both ends multiplied."""
        return Interval(self.low * factor, self.high * factor)

    def plus(self, other: Interval) -> Interval:
        """The ends added."""
        return Interval(self.low + other.low, self.high + other.high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pilot:
    """What a few real calls showed of one model."""

    calls: int
    answered: int
    failed: Mapping[str, int]
    """Reasons of the calls without an answer."""
    input_tokens: Interval
    """Of one call, 95 % interval of the mean."""
    output_tokens: Interval
    latency_s: float
    """Mean."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """One model's share."""

    model: ModelConfig
    calls: int
    """Calls still to be made."""
    answered: int
    """Calls whose answer the journal has already."""
    input_tokens: Interval
    counted: bool
    """True where the model's own tokenizer or a pilot counted the input; False for an estimate."""
    output_tokens: Interval
    usd: Interval | None
    """None where the price is not known."""
    hours: Interval | None
    """At the limits of its account, shared with the other entries of the same account; None without a limit."""
    bound_by: str
    """The limit that decides, such as "rpm 600"."""
    pilot: Pilot | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a whole generate section will take."""

    prompts: int
    samples: int
    combinations: int
    """Different prompts for each label."""
    repeated: int
    """Prompts that repeat an earlier one."""
    labels: Mapping[str, int]
    models: tuple[ModelPlan, ...]
    budget_usd: float | None
    example: str
    """The first prompt."""

    @property
    def usd(self) -> Interval | None:
        """The whole price; None while one model's is not known."""
        known = [m.usd for m in self.models if m.usd is not None]
        return Interval(sum(u.low for u in known), sum(u.high for u in known)) if len(known) == len(self.models) else None

    @property
    def hours(self) -> Interval | None:
        """Models run side by side: the slowest account decides."""
        known = [m.hours for m in self.models if m.hours is not None]
        return Interval(max(h.low for h in known), max(h.high for h in known)) if known else None


def plan(
    config: GenerateConfig, *, seed: int = 0, journal: str | None = None, pilot: int = 0, progress: Progress | None = None
) -> Plan:
    """Work out what ``config`` will take; ``pilot`` real calls for each model sharpen it.

    ``journal`` is the address of the run's journal. Raises ConfigError for whatever would stop the run.
    """
    config.check_models()
    source = PlanSource.of(config, seed)
    if pilot and journal is None:
        raise ConfigError("--pilot makes paid calls, which are kept in a run's journal; give a config with run.output")
    seen = _pilots(config, source, str(journal), min(pilot, config.rows), progress or Progress(quiet=True)) if pilot else {}
    picked = sorted({int(i) for i in np.linspace(0, config.rows - 1, min(config.rows, _COUNTED_PROMPTS))})
    sample = [source.plan.at(i) for i in picked]
    answered = _answered(config, source, journal)
    loads = {m.name: _load(config, m, sample, answered.get(m.name, 0), seen.get(m.name)) for m in config.models}
    models = tuple(
        _with_hours(loads[m.name], [loads[o.name] for o in config.models if _account(o) == _account(m)]) for m in config.models
    )
    label = source.plan.label
    turns, rest = divmod(config.rows, len(label.values())) if label else (config.rows, 0)
    extra = Counter(source.plan.at(i).label for i in range(config.rows - rest, config.rows)) if label else Counter()
    return Plan(
        prompts=config.rows,
        samples=config.samples,
        combinations=source.plan.combinations,
        repeated=max(0, config.rows - source.plan.combinations * (len(label.values()) if label else 1)),
        labels={value: turns + extra[value] for value in label.values()} if label else {},
        models=models,
        budget_usd=config.budget_usd,
        example=sample[0].prompt,
    )


def plain_plan(made: Plan) -> dict[str, Any]:
    """What a manifest keeps of a plan: totals, and each model's figures by its name."""
    models = {}
    for entry in made.models:
        values = {
            f.name: getattr(entry, f.name) for f in dataclasses.fields(entry) if f.name not in ("model", "pilot", "answered")
        }
        models[entry.model.name] = {name: _plain(value) for name, value in values.items()}
    return {
        "prompts": made.prompts,
        "combinations": made.combinations,
        "example": made.example,
        "hours": _plain(made.hours),
        "usd": _plain(made.usd),
        "models": models,
    }


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if isinstance(value, Interval) else value


def _load(
    config: GenerateConfig, model: ModelConfig, sample: Sequence[PlannedPrompt], answered: int, seen: Pilot | None
) -> ModelPlan:
    """Calls, tokens and price of one model; hours follow when all of its account are known."""
    from tunemill.llm.pricing import token_counter

    calls = config.rows * config.samples - answered
    if seen is not None and seen.answered:
        counted, each_input, each_output = True, seen.input_tokens, seen.output_tokens
    else:
        counter = token_counter(model.provider, model.model)
        mean = float(np.mean([counter.prompt(Prompt.of(planned.prompt, config.system)) for planned in sample]))
        counted, each_input = counter.exact, Interval(mean, mean)
        most = model.params.max_tokens
        each_output = Interval(max(1.0, _SHORT_ANSWER * most), float(most))
    tokens_in, tokens_out = each_input.times(calls), each_output.times(calls)
    price = model.price
    priced = (
        model.provider == "embedded"
        or price.input > 0
        or price.output > 0
        or (model.provider == "openai" and model.base_url is not None)
    )
    return ModelPlan(
        model=model,
        calls=calls,
        answered=answered,
        input_tokens=tokens_in,
        counted=counted,
        output_tokens=tokens_out,
        usd=tokens_in.times(price.input / 1e6).plus(tokens_out.times(price.output / 1e6)) if priced else None,
        hours=None,
        bound_by="",
        pilot=seen,
    )


def _account(model: ModelConfig) -> tuple[str | None, ...]:
    """Entries with the same account share its limits."""
    return model.provider, model.account, model.region, model.base_url, model.model


def _with_hours(own: ModelPlan, sharing: Sequence[ModelPlan]) -> ModelPlan:
    """The time that the whole account needs; of different statements of its limits the strictest counts."""
    rates = {
        "rpm": (sum(m.calls for m in sharing), sum(m.calls for m in sharing)),
        "input_tpm": (sum(m.input_tokens.low for m in sharing), sum(m.input_tokens.high for m in sharing)),
        "output_tpm": (sum(m.output_tokens.low for m in sharing), sum(m.output_tokens.high for m in sharing)),
    }
    rates["tpm"] = (rates["input_tpm"][0] + rates["output_tpm"][0], rates["input_tpm"][1] + rates["output_tpm"][1])
    bounds: dict[str, Interval] = {}
    for name, (low, high) in rates.items():
        allowed = [(value, m.model.limits.window_s) for m in sharing if (value := getattr(m.model.limits, name)) is not None]
        if allowed:
            value, window_s = min(allowed, key=lambda item: item[0] / item[1])
            bounds[f"{name} {value:,.0f}"] = Interval(low, high).times(window_s / value / 3600)
    waits = [m.calls * m.pilot.latency_s for m in sharing if m.pilot is not None and m.pilot.answered]
    if waits and len(waits) == len(sharing):
        concurrency = min(m.model.limits.concurrency for m in sharing)
        bounds[f"concurrency {concurrency}"] = Interval(sum(waits), sum(waits)).times(1 / concurrency / 3600)
    if not bounds:
        return own
    binding = max(bounds, key=lambda name: (bounds[name].high, bounds[name].low))
    hours = Interval(max(b.low for b in bounds.values()), bounds[binding].high)
    return dataclasses.replace(own, hours=hours, bound_by=binding)


def _answered(config: GenerateConfig, source: PlanSource, journal: str | None) -> dict[str, int]:
    """For each model, how many of the calls the journal can answer; {} where there is none or there are too many to look up."""
    from tunemill.llm.journal import open_journal
    from tunemill.llm.providers import provider_for
    from tunemill.llm.request import keyed_request

    total = config.rows * config.samples * len(config.models)
    if journal is None or total > _MOST_LOOKED_UP or "://" in journal or not Location(journal).exists():
        return {}
    opened = open_journal(journal)
    reader = opened.reader(opened.open()[0])
    found: dict[str, int] = {}
    schema = None if config.response_schema is None else to_plain(config.response_schema)
    rows = _calls(config, source, config.rows)
    for model in config.models:
        provider = provider_for(model.provider, model.task)
        keys = [
            keyed_request(provider, model, Prompt.of(row["prompt"], row["system"]), schema=schema, sample=row["sample"])[0]
            for row in rows
            if row["model"] == model.name
        ]
        found[model.name] = sum(entry.type == "answer" for entry in reader.find(keys).values())
    return found


def _calls(config: GenerateConfig, source: PlanSource, prompts: int) -> list[dict[str, Any]]:
    names = [model.name for model in config.models]
    table = source.table({"id": np.arange(prompts)})
    return call_table(table, models=names, samples=config.samples, system=config.system).to_pylist()


def _pilots(config: GenerateConfig, source: PlanSource, journal: str, prompts: int, progress: Progress) -> dict[str, Pilot]:
    """Call each model with the first prompts of the plan, as the run would."""
    import ray.data

    from tunemill.llm.caller import open_calls
    from tunemill.resources import connect

    connect()
    names = [model.name for model in config.models]
    table = call_table(source.table({"id": np.arange(prompts)}), models=names, samples=1, system=config.system)
    with (
        progress.stage("pilot"),
        open_calls(
            models=config.models,
            journal=journal,
            budget_usd=config.budget_usd,
            workers=config.workers,
            schema=None if config.response_schema is None else to_plain(config.response_schema),
            job=f"pilot of {journal}",
            progress=progress,
        ) as calls,
    ):
        rows = calls.rows(ray.data.from_arrow(table)).take_all()
    return {name: _seen([row for row in rows if row["model"] == name]) for name in names}


def _seen(rows: Sequence[dict[str, Any]]) -> Pilot:
    good = [row for row in rows if row["reason"] is None]
    return Pilot(
        calls=len(rows),
        answered=len(good),
        failed=Counter(str(row["reason"]) for row in rows if row["reason"] is not None),
        input_tokens=_mean([row["input_tokens"] for row in good]),
        output_tokens=_mean([row["output_tokens"] for row in good]),
        latency_s=float(np.mean([row["latency_s"] for row in good])) if good else 0.0,
    )


def _mean(values: Sequence[float]) -> Interval:
    """95 % interval of the mean by Student's t."""
    if not values:
        return Interval(0.0, 0.0)
    if len(values) == 1:
        return Interval(float(values[0]), float(values[0]))
    from scipy.stats import t

    mean = float(np.mean(values))
    half = float(t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(max(0.0, mean - half), mean + half)
