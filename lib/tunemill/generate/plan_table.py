"""The plan as a table that one would act on: aligned plain text, at most 110 columns."""

from __future__ import annotations

from collections.abc import Sequence

from tunemill.generate.plan import Interval, ModelPlan, Plan

__all__ = ["render"]

_HEAD = ("model", "provider", "calls", "input tokens", "output tokens", "USD", "hours", "bound by")
_WIDEST = 110
_NAME = 20


def render(plan: Plan) -> str:
    """The plan in lines."""
    calls = sum(m.calls for m in plan.models)
    answered = sum(m.answered for m in plan.models)
    samples = f" x {plan.samples} samples" if plan.samples > 1 else ""
    models = f"{len(plan.models)} model{'s' if len(plan.models) > 1 else ''}"
    lines = [f"{plan.prompts:,} prompts x {models}{samples} = {calls + answered:,} calls"]
    if answered:
        lines[0] += f", {answered:,} of them answered in the journal"
    balance = ", ".join(f"{label} {count:,}" for label, count in plan.labels.items())
    facts = [f"labels: {balance}"] if balance else []
    facts.append(f"{plan.combinations:,} different prompts{' for each label' if balance else ''}")
    if plan.repeated:
        facts.append(f"{plan.repeated:,} prompts repeat an earlier one")
    lines += [_cut(line) for line in ("; ".join(facts), f"first prompt: {plan.example}")]
    lines += ["", *_table([_HEAD, *(_row(m) for m in plan.models), _total(plan)])]
    return "\n".join([*lines, "", *_notes(plan)]) + "\n"


def _row(m: ModelPlan) -> tuple[str, ...]:
    price = "unknown price" if m.usd is None else _usd(m.usd)
    hours = "-" if m.hours is None else _hours(m.hours)
    name = m.model.name if len(m.model.name) <= _NAME else f"{m.model.name[: _NAME - 1]}…"
    tokens_in = f"{'' if m.counted else '~'}{_count(m.input_tokens)}"
    return (
        name,
        m.model.provider,
        f"{m.calls:,}",
        tokens_in,
        _count(m.output_tokens),
        price,
        hours,
        m.bound_by or "no limit given",
    )


def _total(plan: Plan) -> tuple[str, ...]:
    incoming = Interval(sum(m.input_tokens.low for m in plan.models), sum(m.input_tokens.high for m in plan.models))
    outgoing = Interval(sum(m.output_tokens.low for m in plan.models), sum(m.output_tokens.high for m in plan.models))
    mark = "" if all(m.counted for m in plan.models) else "~"
    price = "unknown" if plan.usd is None else _usd(plan.usd)
    hours = "-" if plan.hours is None else _hours(plan.hours)
    calls = sum(m.calls for m in plan.models)
    return "total", "", f"{calls:,}", f"{mark}{_count(incoming)}", _count(outgoing), price, hours, ""


def _notes(plan: Plan) -> list[str]:
    notes = []
    piloted = [m for m in plan.models if m.pilot is not None and m.pilot.answered]
    if piloted:
        notes.append(
            f"ranges are 95 % intervals from a pilot of {piloted[0].pilot.calls if piloted[0].pilot else 0} calls for each model"
        )
    else:
        notes.append("ranges run from short answers (a tenth of max_tokens) to max_tokens; --pilot 20 narrows them")
    if not all(m.counted for m in plan.models):
        notes.append("~ estimated from the characters: that model's tokenizer is not installed")
    if any(m.hours is not None for m in plan.models):
        notes.append("hours at the given limits; models run side by side, entries of one account share its limits")
    for m in plan.models:
        if m.usd is None:
            notes.append(
                _cut(f"{m.model.name}: give price: {{input: ..., output: ...}} in USD per million tokens to see its cost")
            )
        if m.pilot is not None and m.pilot.failed:
            reasons = ", ".join(f"{reason} {count}" for reason, count in m.pilot.failed.items())
            notes.append(
                _cut(f"{m.model.name}: {sum(m.pilot.failed.values())} of {m.pilot.calls} pilot calls had no answer ({reasons})")
            )
    notes.append(_budget(plan))
    return notes


def _budget(plan: Plan) -> str:
    cap, cost = plan.budget_usd, plan.usd
    if cap is None:
        return "no budget_usd is set: nothing caps the spending"
    if cost is None:
        return f"budget_usd {cap:g} can only be kept to where every price is given: the run will not start without"
    if cost.high <= cap:
        return f"budget_usd {cap:g} covers the whole run"
    least = f"{cap / cost.high:.0%}"
    if cost.low <= cap:
        return f"budget_usd {cap:g} covers all calls at the low end, {least} at the high end; the rest stays pending"
    return f"budget_usd {cap:g} covers only {least} to {cap / cost.low:.0%} of the calls; the rest stays pending"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    left = (0, 1, len(widths) - 1)
    lines = [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    rule = "-" * min(max(len(line.rstrip()) for line in lines), _WIDEST)
    return [line.rstrip() for line in (lines[0], rule, *lines[1:-1], rule, lines[-1])]


def _count(tokens: Interval) -> str:
    low, high = _short(tokens.low), _short(tokens.high)
    return low if low == high else f"{low} - {high}"


def _short(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            scaled = value / (1e3 if unit == "k" else limit)
            return f"{scaled:,.1f}{unit}" if scaled < 100 else f"{scaled:,.0f}{unit}"
    return f"{value:,.0f}"


def _usd(cost: Interval) -> str:
    low, high = _money(cost.low), _money(cost.high)
    return low if low == high else f"{low} - {high}"


def _money(value: float) -> str:
    return "0" if value == 0 else f"{value:,.2f}" if value >= 1 else f"{value:.3f}" if value >= 0.01 else f"{value:.2g}"


def _hours(time: Interval) -> str:
    low, high = (f"{value:,.1f}" if value >= 1 else f"{value:.2f}" for value in (time.low, time.high))
    return low if low == high else f"{low} - {high}"


def _cut(line: str) -> str:
    flat = " ".join(line.split())
    return flat if len(flat) <= _WIDEST else f"{flat[: _WIDEST - 1]}…"
