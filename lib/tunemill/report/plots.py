"""The page's pictures, each from plain arrays to inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from tunemill.report.canvas import INK, LINE, SERIES, drawn

__all__ = [
    "bars",
    "confusion",
    "curve",
    "histogram",
    "latencies",
    "lengths",
    "roc",
    "scatter",
    "stacked",
]

Values = npt.NDArray[np.float64]

_FURTHER = ("#332288", "#882255", "#117733", "#aa7733")
_MOST_NUMBERED = 12
_MOST_CHARACTERS = 18


def _counts(axis: Any, *, log: bool = False) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if not log:
        axis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def histogram(
    edges: Sequence[float], counts: Sequence[float], *, title: str, x: str, y: str, cut: float | None = None, cut_name: str = ""
) -> Markup:
    """Bars between ``edges``, with a line at ``cut``; the part at or above the cut is darker."""
    with drawn(title, 640, 230) as canvas:
        axes = canvas.axes
        low, high = np.asarray(edges[:-1]), np.asarray(edges[1:])
        high = high - 0.04 * (high - low)
        axes.bar(low, counts, width=high - low, align="edge", color=SERIES[5] if cut is not None else SERIES[0], linewidth=0)
        if cut is not None:
            inside = np.maximum(low, cut)
            axes.bar(inside, counts, width=np.maximum(high - inside, 0), align="edge", color=SERIES[0], linewidth=0)
        axes.set(xlabel=x, ylabel=y, xlim=(edges[0], edges[-1]))
        _counts(axes.yaxis)
        axes.grid(axis="y")
        if cut is not None:
            _mark(axes, cut, cut_name)
    return canvas.svg


def _mark(axes: Any, place: float, name: str) -> None:
    axes.axvline(place, color=SERIES[1], linewidth=1.2, linestyle=(0, (4, 2)))
    axes.annotate(
        name, (place, 1), xycoords=("data", "axes fraction"), xytext=(4, -2), textcoords="offset points",
        ha="left", va="top", color=SERIES[1], fontsize=8.5, annotation_clip=False,
    )  # fmt: skip


def latencies(samples: Mapping[str, Values]) -> Markup:
    """One row for each model: the distribution of seconds to an answer, with its median."""
    present = {name: values for name, values in samples.items() if len(values)}
    upper = float(max(np.quantile(values, 0.99) for values in present.values())) or 1.0
    with drawn(
        "answer latency for each model", 760, 60 + 74 * len(present), rows=len(present), sharex=True, squeeze=False
    ) as canvas:
        edges = np.linspace(0, upper * 1.02, 61)
        for index, (axes, (name, values)) in enumerate(zip(canvas.axes[:, 0], present.items(), strict=True)):
            counts, _ = np.histogram(np.minimum(values, edges[-1]), bins=edges)
            axes.stairs(counts, edges, fill=True, color=SERIES[0], alpha=0.85)
            median = float(np.median(values))
            axes.axvline(median, color=SERIES[1], linewidth=1.2)
            axes.set_title(f"{name}, median {median:.3g} s", pad=3)
            axes.set(yticks=[], xlim=(0, edges[-1]))
            axes.spines["left"].set_visible(False)
            if index == len(present) - 1:
                axes.set_xlabel("seconds to an answer (the slowest 1 % are in the last bar)")
    return canvas.svg


def lengths(series: Mapping[str, Values], cut: float | None) -> Markup:
    """Token histograms under each other on one scale, with the length limit drawn in."""
    longest = float(max((values.max() for values in series.values() if len(values)), default=1.0))
    shown = max(longest * 1.02, 8.0)
    step = max(1.0, np.ceil(shown / 64))
    edges = np.arange(0, shown + step, step)
    if cut is not None and cut <= longest * 3:
        edges = np.arange(0, max(shown, cut * 1.04) + step, step)
    with drawn("tokens of prompt, answer and both together", 760, 360, rows=len(series), sharex=True, squeeze=False) as canvas:
        for axes, (name, values), colour in zip(canvas.axes[:, 0], series.items(), SERIES, strict=False):
            counts, _ = np.histogram(values, bins=edges)
            axes.stairs(counts, edges, fill=True, color=colour, alpha=0.9)
            axes.set_title(f"{name}, median {np.median(values):,.0f}, longest {values.max():,.0f}", pad=3)
            axes.set_ylabel("rows")
            _counts(axes.yaxis)
            axes.grid(axis="y")
        last = canvas.axes[-1, 0]
        last.set(xlabel="tokens", xlim=(0, edges[-1]))
        _counts(last.xaxis)
        if cut is not None and cut <= edges[-1]:
            _mark(last, cut, f"limit {cut:,.0f}")
        elif cut is not None:
            last.annotate(
                f"limit {cut:,.0f} →", (1, 1), xycoords="axes fraction", xytext=(0, -2), textcoords="offset points",
                ha="right", va="top", color=SERIES[1], fontsize=8.5,
            )  # fmt: skip
    return canvas.svg


def scatter(x: Values, y: Values, cluster: npt.NDArray[np.int64], target: int | None) -> Markup:
    """Segments in the plane of their first two components; the target cluster is drawn last and large."""
    with drawn("segments by cluster", 760, 460) as canvas:
        axes = canvas.axes
        names = sorted({int(name) for name in cluster}, key=lambda name: (name == target, name))
        for name in names:
            inside = cluster == name
            wanted = name == target
            axes.scatter(
                x[inside], y[inside], s=16 if wanted else 9, linewidth=0, alpha=0.75 if wanted else 0.55,
                color=SERIES[name % len(SERIES)], label=f"{name} (target)" if wanted else str(name), rasterized=False,
            )  # fmt: skip
        axes.set(xlabel="first component", ylabel="second component")
        axes.grid(visible=True)
        axes.legend(title="cluster", ncols=1, loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=1.6, handletextpad=0.2)
    return canvas.svg


def bars(names: Sequence[str], counts: Sequence[float], *, title: str, x: str, y: str) -> Markup:
    """One bar for each name, with its count above."""
    with drawn(title, min(640, 130 + 44 * len(names)), 210) as canvas:
        axes = canvas.axes
        axes.bar(range(len(names)), counts, width=0.7, color=SERIES[0])
        for place, count in enumerate(counts):
            axes.annotate(f"{count:,.0f}", (place, count), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=8)
        wide = max(counts) > 50 * max(min(counts), 1)
        axes.set(xlabel=x, ylabel=y, yscale="log" if wide else "linear")
        _counts(axes.yaxis, log=wide)
        axes.set_xticks(range(len(names)), names)
        axes.tick_params(axis="x", length=0)
        axes.margins(y=0.15)
    return canvas.svg


def stacked(rows: Mapping[str, Mapping[str, int]], labels: Sequence[str]) -> Markup:
    """For each row (a stage or a model) the shares of the labels, with their counts."""
    with drawn("label balance", 760, 66 + 30 * len(rows)) as canvas:
        axes = canvas.axes
        for place, counts in enumerate(rows.values()):
            total = sum(counts.values()) or 1
            start = 0.0
            for label, colour in zip(labels, _cycle(len(labels)), strict=True):
                share = counts.get(label, 0) / total
                axes.barh(place, share, left=start, height=0.72, color=colour, label=_short(label) if not place else None)
                if share > 0.07:
                    axes.text(
                        start + share / 2, place, f"{counts[label]:,}", ha="center", va="center", color="#ffffff", fontsize=8
                    )
                start += share
        axes.set_yticks(range(len(rows)), list(rows))
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set(xlim=(0, 1))
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=min(len(labels), 6), handlelength=1, handleheight=1)
    return canvas.svg


def _cycle(count: int) -> list[str]:
    return [(*SERIES, *_FURTHER)[i % (len(SERIES) + len(_FURTHER))] for i in range(count)]


def curve(steps: Values, losses: Values, checked: Sequence[tuple[float, float]], rates: Sequence[tuple[float, float]]) -> Markup:
    """Training loss (each step and smoothed), validation loss, and the learning rate beneath."""
    with drawn(
        "training curve", 760, 400 if rates else 280, rows=2 if rates else 1, sharex=True, squeeze=False,
        gridspec_kw={"height_ratios": [3, 1] if rates else [1]},
    ) as canvas:  # fmt: skip
        axes = canvas.axes[0, 0]
        if len(steps):
            axes.plot(steps, losses, color=SERIES[0], alpha=0.3, linewidth=0.9)
            axes.plot(steps, _smoothed(losses), color=SERIES[0], label="training, smoothed")
        if checked:
            axes.plot(*zip(*checked, strict=True), color=SERIES[1], marker="o", markersize=3.5, label="validation")
        axes.set(ylabel="loss (nats a token)")
        axes.grid(axis="y")
        axes.legend(loc="upper right")
        if rates:
            canvas.axes[1, 0].plot(*zip(*rates, strict=True), color=SERIES[7], linewidth=1.2)
            canvas.axes[1, 0].set(ylabel="learning rate", ylim=(0, None))
        canvas.axes[-1, 0].set_xlabel("step")
    return canvas.svg


def _smoothed(values: Values) -> Values:
    """Exponential moving average with a span of a twentieth of the run."""
    weight = 2 / (max(len(values) / 20, 1) + 1)
    found, state = [], float(values[0])
    for value in values:
        state += weight * (float(value) - state)
        found.append(state)
    return np.array(found)


def confusion(matrices: Mapping[str, Sequence[Sequence[int]]], labels: Sequence[str]) -> Markup:
    """Matrices of counts side by side; colour is the share within the right label's row."""
    names = [_short(label) for label in labels]
    longest = max(map(len, names))
    upright = len(labels) * longest <= 24
    cells = min(46 * len(labels), 360)
    width = 40 + 7 * longest + (cells + 24) * len(matrices)
    height = 70 + cells + (10 if upright else 6 * longest)
    with drawn("confusion matrices", min(width, 960), height, columns=len(matrices), squeeze=False) as canvas:
        for index, (axes, (name, matrix)) in enumerate(zip(canvas.axes[0], matrices.items(), strict=True)):
            _cells(axes, np.asarray(matrix, dtype=np.float64))
            axes.set_title(name)
            axes.set_xticks(range(len(labels)), names, rotation=0 if upright else 60, ha="center" if upright else "right")
            axes.set_yticks(range(len(labels)), names if index == 0 else [""] * len(labels))
            axes.set(xlabel="predicted", ylabel="right label" if index == 0 else "", aspect="equal")
            axes.set(xlim=(-0.5, len(labels) - 0.5), ylim=(len(labels) - 0.5, -0.5))
            axes.tick_params(length=0)
            for spine in axes.spines.values():
                spine.set_visible(False)
    return canvas.svg


def _cells(axes: Any, counts: Values) -> None:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    for row, column in np.ndindex(counts.shape):
        share = float(shares[row, column])
        sides = [column - 0.48, column + 0.48]
        axes.fill_between(sides, row - 0.48, row + 0.48, color=SERIES[0], alpha=0.06 + 0.9 * share, lw=0)
        if len(counts) <= _MOST_NUMBERED:
            ink = "#ffffff" if share > 0.5 else INK
            axes.text(column, row, f"{counts[row, column]:,.0f}", ha="center", va="center", color=ink, fontsize=10)


def _short(name: str) -> str:
    return name if len(name) <= _MOST_CHARACTERS else f"{name[: _MOST_CHARACTERS - 1]}…"


def roc(curves: Mapping[str, tuple[Values, Values]], title: str) -> Markup:
    """ROC curves (false positive rate, true positive rate) with the line of chance."""
    with drawn(title, 400, 380) as canvas:
        axes = canvas.axes
        axes.plot([0, 1], [0, 1], color=LINE, linewidth=1, linestyle=(0, (3, 3)))
        for (name, (false_rate, true_rate)), colour in zip(curves.items(), SERIES, strict=False):
            axes.plot(false_rate, true_rate, color=colour, label=name, clip_on=False)
        axes.set(
            xlabel="false positive rate", ylabel="true positive rate", aspect="equal", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01)
        )
        axes.grid(visible=True)
        axes.legend(loc="lower right")
    return canvas.svg
