"""benchmarks/results/fanout.md from the recorded lines: the latest of each setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["write_report"]


def write_report(results: Path, report: Path, hardware: str) -> None:
    """Tables of limit use, peers, overhead, faults and memory."""
    latest: dict[str, dict[str, Any]] = {}
    for text in results.read_text().splitlines():
        line = json.loads(text)
        latest[json.dumps(line["settings"], sort_keys=True)] = line
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for line in latest.values():
        by_kind.setdefault(line["settings"]["what"], []).append(line)
    days = sorted({line["at"][:10] for line in latest.values()})
    loads = sorted(line["load"] for line in latest.values())
    lines = [
        "# Fan-out of rate-limited calls",
        "",
        f"{', '.join(days)}; {hardware}; shared with other work (load average {loads[0]:g} to {loads[-1]:g}),",
        "so wall-clock figures are floors. The mock's own sliding window judges; commands are in `benchmarks/fanout.py`.",
        "",
        *_limits(by_kind.get("limits", [])),
        *_peers(by_kind.get("peer", [])),
        *_overhead(by_kind.get("overhead", [])),
        *_faults(by_kind.get("faults", [])),
        *_memory(by_kind.get("memory", [])),
    ]
    report.write_text("\n".join(lines) + "\n")


def _limits(found: list[dict[str, Any]]) -> list[str]:
    lines = [
        "## Limit use",
        "",
        "Two simulated nodes, answers after a lognormal 0.3 s, counted from the tenth second on.",
        "Goal: use >= 99 %, throttled <= 0.1 %.",
        "",
        "| limit | callers | jobs | use of the limit | throttled | share of each job | load |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in found:
        settings, seen = line["settings"], line["found"]
        limit = f"{settings['tpm']:,.0f} tokens/min" if settings.get("tpm") else f"{settings['rpm']:,.0f} requests/min"
        shares = " / ".join(f"{share:.0%}" for share in seen["shares"].values())
        lines.append(
            f"| {limit} | {settings['callers']} | {settings['jobs']} | {seen['use']:.1%} | {seen['throttled_share']:.2%} "
            f"| {shares} | {line['load']:g} |"
        )
    return [*lines, ""]


def _peers(found: list[dict[str, Any]]) -> list[str]:
    if not found:
        return []
    names = {"bucket": "token bucket per process", "curator": "bespokelabs-curator", "raydata": "Ray Data LLM HTTP processor"}
    lines = [
        "## Peers on the same mock",
        "",
        "| peer | limit | processes | use | throttled, of all calls | load |",
        "|---|---|---|---|---|---|",
    ]
    for line in found:
        settings, seen = line["settings"], line["found"]
        lines.append(
            f"| {names[settings['peer']]} | {settings['rpm']:,.0f} requests/min | {settings['callers']} | {seen['use']:.1%} "
            f"| {seen['throttled_of_all_calls']:.1%} | {line['load']:g} |"
        )
    return [*lines, ""]


def _overhead(found: list[dict[str, Any]]) -> list[str]:
    if not found:
        return []
    seen = found[-1]["found"]
    bare = seen["bare"]["caller_ms"]
    lines = [
        "## CPU of a call without limits",
        "",
        "CPU time of the calling process for each call (independent of other load), 256 in flight, answers after 50 ms. "
        "Goal: >= 0.8 of the bare loop's requests per second and core.",
        "",
        "| | CPU ms per call | calls/s per core | of the bare loop |",
        "|---|---|---|---|",
    ]
    names = {
        "bare": "bare loop over httpx on aiohttp",
        "worker": "caller, budget in process, no journal",
        "worker+journal": "with journal",
    }
    names["ray"] = "with Ray Data, budget and ledger actors"
    for layer, name in names.items():
        value = seen[layer]["caller_ms"]
        lines.append(f"| {name} | {value:.3f} | {1000 / value:,.0f} | {bare / value:.2f} |")
    ray = seen["ray"]
    lines += [
        "",
        f"Outside the caller: budget and ledger actors {ray['budget_ms']:.3f} ms, driver {ray['driver_ms']:.3f} ms per call.",
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
        f"Clean: {clean['answered']} answers, {clean['ms_per_answer']} ms each; with 10 % mixed faults: "
        f"{faulty['answered']} answers, "
        f"{faulty['ms_per_answer']} ms each (dropped: {faulty['dropped'] or 'none'}). Ratio {seen['ratio']} (goal: <= 1.2).",
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
