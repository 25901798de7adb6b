"""benchmarks/results/fanout.md from the recorded lines: the latest of each setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["write_report"]


# What tells one measurement from another; of several runs of one the newest counts.
_IDENTITY = ("what", "rpm", "tpm", "callers", "jobs", "peer")
_NEEDED = {"limits": _IDENTITY, "peer": ("what", "peer", "rpm", "callers")}
_PEERS = {"bucket": "token bucket per process", "curator": "bespokelabs-curator", "raydata": "Ray Data LLM HTTP processor"}


def write_report(results: Path, report: Path, hardware: str) -> None:
    """Tables of limit use, peers, overhead, faults and memory."""
    latest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for text in results.read_text().splitlines():
        line = json.loads(text)
        settings = line["settings"]
        latest[tuple(settings.get(name) for name in _NEEDED.get(settings["what"], ("what",)))] = line
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for line in latest.values():
        by_kind.setdefault(line["settings"]["what"], []).append(line)
    days = sorted({line["at"][:10] for line in latest.values()})
    lines = [
        "# Fan-out of rate-limited calls",
        "",
        f"{', '.join(days)}; {hardware}, which callers, Ray and the mock share.",
        "The mock's own sliding window judges. Commands: `benchmarks/fanout.py`; the newest run of each setting is shown.",
        "",
        *_limits(by_kind.get("limits", [])),
        *_peers(by_kind.get("peer", [])),
        *_overhead(by_kind.get("overhead", [])),
        *_faults(by_kind.get("faults", [])),
        *_memory(by_kind.get("memory", [])),
    ]
    report.write_text("\n".join(lines))


def _limits(found: list[dict[str, Any]]) -> list[str]:
    lines = [
        "## Limit use",
        "",
        "Two simulated nodes, answers after a lognormal 0.3 s, counted from the tenth second on.",
        "Goal: use >= 99 %, throttled <= 0.1 %. Our windows are longer than the account's by a guard of 0.5 % and one bucket of",
        "2,000, so 99.45 % is the most. With tokens, the account holds max_tokens of each call until it has answered (as OpenAI",
        "does); what it holds too much nobody can use, and the rest is called possible. What is missing there beside the guard:",
        "permits are dealt up to 0.2 s ahead and settled up to 0.2 s late, and hold their max_tokens meanwhile (simulated with",
        "the real state machine on a clock of its own: 98.3 % over the first 65 s, 98.9 % after that).",
        "",
        "| limit | callers | jobs | use of the limit | answered / throttled | share of each job |",
        "|---|---|---|---|---|---|",
    ]
    order = sorted(found, key=lambda line: [line["settings"].get(name) or 0 for name in ("tpm", "jobs", "rpm", "callers")])
    for line in order:
        settings, seen = line["settings"], line["found"]
        limit = f"{settings['tpm']:,.0f} tokens/min" if settings.get("tpm") else f"{settings['rpm']:,.0f} requests/min"
        shares = " / ".join(f"{share:.1%}" for share in seen["shares"].values())
        possible = f" (of {seen['possible']:.1%} possible)" if "possible" in seen else ""
        lines.append(
            f"| {limit} | {settings['callers']} | {settings['jobs']} | {seen['use']:.1%}{possible} "
            f"| {seen['answered']:,} / {seen['throttled']:,} | {shares} |"
        )
    return [*lines, ""]


def _peers(found: list[dict[str, Any]]) -> list[str]:
    if not found:
        return []
    lines = [
        "## Peers on the same mock",
        "",
        "Each process is told the account's whole limit, as nothing tells it of the others. Ray Data's processor has 4 actors.",
        "The repository's tests ran beside some of these runs, which at ten calls a second do not need a whole core.",
        "",
        "| peer | limit | processes | use | throttled, of all calls |",
        "|---|---|---|---|---|",
    ]
    for line in sorted(found, key=lambda line: [line["settings"][name] for name in ("rpm", "peer", "callers")]):
        settings, seen = line["settings"], line["found"]
        lines.append(
            f"| {_PEERS[settings['peer']]} | {settings['rpm']:,.0f} requests/min | {settings['callers']} | {seen['use']:.1%} "
            f"| {seen['throttled_of_all_calls']:.1%} |"
        )
    return [*lines, ""]


def _overhead(found: list[dict[str, Any]]) -> list[str]:
    if not found:
        return []
    seen, settings = found[-1]["found"], found[-1]["settings"]
    bare = seen["bare"]["caller_ms"][0]
    lines = [
        "## CPU of a call without limits",
        "",
        f"CPU time of the calling process for each call while calls flow, 256 in flight, answers after 50 ms, "
        f"{settings['rows']:,} calls; median (least to most) of {seen['rounds']} rounds, the layers in turn in each.",
        "Goal: >= 0.8 of the bare loop's requests per second and core.",
        "",
        "| | CPU ms per call | calls/s per core | of the bare loop | calls/s reached |",
        "|---|---|---|---|---|",
    ]
    names = {
        "bare": "bare loop over httpx on aiohttp",
        "caller": "our caller, no budget, no journal",
        "budget": "with the budget, in process",
        "journal": "with the journal",
        "ray": "with Ray: actor pool, budget and ledger actors",
    }
    for layer, name in names.items():
        value, least, most = seen[layer]["caller_ms"]
        lines.append(
            f"| {name} | {value:.3f} ({least:.3f} to {most:.3f}) | {1000 / value:,.0f} | {bare / value:.2f} "
            f"| {seen[layer]['wall_per_s'][0]:,.0f} |"
        )
    own = {layer: seen[layer]["caller_ms"][0] for layer in names}
    noise = max(seen[layer]["caller_ms"][2] - seen[layer]["caller_ms"][1] for layer in names)
    ray = {name: value[0] for name, value in seen["ray"].items()}
    lines += [
        "",
        f"Ratio with Ray, by round: {seen['ratio'][0]:.2f} ({seen['ratio'][1]:.2f} to {seen['ratio'][2]:.2f}). Of the "
        f"caller's {own['ray']:.3f} ms: budget {own['budget'] - own['caller']:+.3f}, "
        f"journal {own['journal'] - own['budget']:+.3f}, "
        f"Ray {own['ray'] - own['journal']:+.3f} (differences of medians; a layer varies by up to {noise:.2f} between rounds).",
        f"Outside the caller: budget and ledger actors {ray['budget_ms']:.3f} ms, driver {ray['driver_ms']:.3f} ms, "
        f"Ray's own processes and tasks {ray['ray_ms']:.3f} ms; with them {ray['all_ms']:.3f} ms in all, "
        f"{seen['ratio_all'][0]:.2f} of the bare loop. A caller's start takes {ray['start_s']:.1f} s of CPU, once.",
        "",
    ]
    return lines


def _faults(found: list[dict[str, Any]]) -> list[str]:
    if not found:
        return []
    seen = found[-1]["found"]
    clean, faulty = seen["clean"], seen["faulty"]
    return [
        "## A tenth of the calls fail",
        "",
        "429, 500, 502, 503, cut connections, broken and empty answers in equal parts; 64 calls in flight, a lognormal 0.2 s",
        f"each. Clean: {clean['answered']:,} answers, {clean['ms_per_answer']} ms each; with the faults {faulty['answered']:,}",
        f"answers, {faulty['ms_per_answer']} ms each (dropped: {faulty['dropped'] or 'none'}).",
        f"Ratio {seen['ratio']:.2f} (goal: <= 1.2; the tenth of calls made again takes 1.11 by itself).",
        "",
    ]


def _memory(found: list[dict[str, Any]]) -> list[str]:
    if not found:
        return []
    seen = found[-1]["found"]
    names = ["driver", "ray::MapWorker", "ray::_BudgetActor", "ray::_LedgerActor"]
    lines = [
        "## Memory",
        "",
        f"{seen['rows']:,} rows through the mock ({seen['rows_per_s']} rows/s), private MB (driver: resident):",
        "",
        f"| of the run | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for point in seen["curve_mb"]:
        lines.append(
            f"| {point['share']:.0%} ({point['seconds']} s) | {' | '.join(str(point.get(name, '')) for name in names)} |"
        )
    return [*lines, ""]
