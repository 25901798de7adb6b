"""What the dedup stage removed, and what it left although it was close."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import re
from typing import Any

from markupsafe import Markup, escape

from tunemill.report import plots
from tunemill.report.folder import RunFolder

__all__ = ["duplicates_section", "marked_difference"]

_EXAMPLES = 8
_READ_DROPPED = 20_000
_WORDS_COMPARED = 400
_LEAST_SHARED = 0.6


def duplicates_section(run: RunFolder) -> dict[str, Any] | None:
    """Counts, rules compared, histogram, groups, removed rows beside their survivors, pairs around the threshold."""
    details = run.details("dedup")
    if not details:
        return None
    histogram = details.get("similarity_histogram") or {}
    threshold = details.get("threshold")
    sizes = {int(size): count for size, count in (details.get("groups") or {}).items() if str(size).isdigit()}
    several = {size: count for size, count in sorted(sizes.items()) if size > 1}
    return {
        "threshold": threshold,
        "pair_floor": details.get("pair_floor"),
        "pairs": details.get("pairs"),
        "exact": details.get("exact_duplicates"),
        "near": details.get("near_duplicates"),
        "protected": details.get("near_protected"),
        "recall": (details.get("engine") or {}).get("recall"),
        "rules": details.get("rules") or {},
        "engine": {
            key.replace("_", " "): value
            for key, value in (details.get("engine") or {}).items()
            if not isinstance(value, (dict, list))
        },
        "histogram": _histogram(histogram, threshold),
        "sizes": _sizes(several),
        "groups": details.get("largest_groups") or [],
        "examples": _examples(run),
        "near_threshold": [{**pair, **_sides(pair.get("a"), pair.get("b"))} for pair in details.get("near_threshold") or []],
    }


def _histogram(histogram: dict[str, Any], threshold: float | None) -> Markup | None:
    if not sum(histogram.get("counts") or []):
        return None
    return plots.histogram(
        histogram["edges"], histogram["counts"], title="similarity of pairs", x="cosine similarity", y="pairs", cut=threshold,
        cut_name=f"threshold {threshold:g}" if threshold is not None else "",
    )  # fmt: skip


def _sizes(several: dict[int, int]) -> Markup | None:
    if not several:
        return None
    names = [str(size) for size in several]
    counts = list(several.values())
    if len(names) > 12:
        names, counts = [*names[:11], f"{names[11]} or more"], [*counts[:11], sum(counts[11:])]
    return plots.bars(names, counts, title="sizes of groups", x="rows in a group", y="groups")


def _examples(run: RunFolder) -> list[dict[str, Any]]:
    """Removed rows beside the row that stayed, spread over the similarities found."""
    manifest = run.manifests["dedup"]
    columns = manifest.config.get("text_columns") or ["text"]
    table = run.table("dedup", "dropped", ["id", "reason", "kept_id", "similarity", *columns], most_rows=_READ_DROPPED)
    if table is None or not {"kept_id", "similarity", "reason"} <= set(table.column_names):
        return []
    rows = [row for row in table.to_pylist() if row["reason"] != "exact_duplicate" and row["similarity"] is not None]
    rows.sort(key=lambda row: (row["similarity"], hashlib.blake2b(str(row["id"]).encode(), digest_size=8).digest()))
    stride = max(1, (len(rows) - 1) // (_EXAMPLES - 1)) if len(rows) > 1 else 1
    chosen = rows[::stride][:_EXAMPLES]
    survivors = run.rows_by_id("dedup", [str(row["kept_id"]) for row in chosen], columns)
    found = []
    for row in reversed(chosen):
        kept = survivors.get(str(row["kept_id"]))
        if kept is not None:
            texts = ["\n".join(str(side.get(name) or "") for name in columns) for side in (kept, row)]
            found.append({"similarity": row["similarity"], "reason": row["reason"], **_sides(*texts)})
    return found


def _sides(one: str | None, other: str | None) -> dict[str, Markup]:
    left, right = marked_difference(one or "", other or "")
    return {"left": left, "right": right}


def marked_difference(one: str, other: str) -> tuple[Markup, Markup]:
    """Both texts with the words that the other lacks in ``<mark>``; everything else is escaped.

    Scripts that are written without spaces are compared character by character. Texts that share little
    are not marked: everything would be.
    """
    pieces: list[list[str]] = [re.findall(r"[぀-ヿ㐀-鿿]|\w+|\s+|[^\w\s]", text) for text in (one, other)]
    if max(map(len, pieces)) > _WORDS_COMPARED:
        return Markup(escape(one)), Markup(escape(other))
    matcher = difflib.SequenceMatcher(None, pieces[0], pieces[1], autojunk=False)
    if matcher.ratio() < _LEAST_SHARED:
        return Markup(escape(one)), Markup(escape(other))
    runs = [(kind == "equal", pieces[0][a:b], pieces[1][c:d]) for kind, a, b, c, d in matcher.get_opcodes()]
    return _joined([(same, left) for same, left, _ in runs]), _joined([(same, right) for same, _, right in runs])


def _joined(runs: list[tuple[bool, list[str]]]) -> Markup:
    """Runs of pieces as HTML; a blank between two marked words is marked with them."""
    found = Markup("")
    for same, run in itertools.groupby(_flat(runs), key=lambda item: item[0]):
        text = "".join(piece for _, piece in run)
        found += text if same else Markup("<mark>{}</mark>").format(text) if text.strip() else Markup(escape(text))
    return found


def _flat(runs: list[tuple[bool, list[str]]]) -> list[tuple[bool, str]]:
    pieces = [(same, "".join(run)) for same, run in runs if run]
    between = [0 < i < len(pieces) - 1 and not text.strip() for i, (_, text) in enumerate(pieces)]
    return [(same and not between[i], text) for i, (same, text) in enumerate(pieces)]
