"""Draws with matplotlib and gives inline SVG that takes its colours and fonts from the page.

Ink and paper are written as CSS variables, so that the page's light, dark and print styles apply; text
stays text, so that the browser shapes every script.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

from markupsafe import Markup

__all__ = ["INK", "LINE", "SERIES", "Canvas", "drawn"]

# Okabe and Ito's palette, which colour-blind readers can tell apart.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f")

INK, _FAINT, LINE, _PAPER = "#010203", "#010204", "#010205", "#010206"
_VARIABLES = {INK: "var(--ink)", _FAINT: "var(--faint)", LINE: "var(--line)", _PAPER: "var(--paper)"}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tunemill",
    "text.parse_math": False,
    "font.size": 9.0,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.labelcolor": _FAINT,
    "axes.labelsize": 9.0,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "figure.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "lines.linewidth": 1.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": _FAINT,
    "ytick.labelcolor": _FAINT,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
}


class Canvas:
    """A figure with its axes, and the SVG once it is drawn."""

    def __init__(self, figure: Any, axes: Any) -> None:
        self.figure, self.axes = figure, axes
        self.svg = Markup("")


@contextmanager
def drawn(title: str, width: float, height: float, *, columns: int = 1, rows: int = 1, **options: Any) -> Iterator[Canvas]:
    """Axes of ``width`` x ``height`` hundredths of an inch (about CSS pixels); ``title`` is read out to those who cannot see."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # The browser has the fonts that matplotlib measures text without.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        # Labels longer than the picture leave no room; it is drawn all the same.
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        figure = Figure(figsize=(width / 100, height / 100), layout="constrained")
        canvas = Canvas(figure, figure.subplots(rows, columns, **options))
        yield canvas
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    canvas.svg = Markup(_tidied(file.getvalue(), title))


def _tidied(svg: str, title: str) -> str:
    """Without prologue, metadata and group names; with CSS variables for colours, and scaling to the column."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    width = re.search(r'<svg[^>]*? width="([\d.]+)pt"', svg)
    # 72 points of matplotlib are 100 units of ours.
    pixels = float(width.group(1)) * 100 / 72 if width else 600
    head = f'<svg role="img" aria-label="{escape(title, quote=True)}" style="width:{pixels:.0f}px"'
    svg = re.sub(
        r'<svg(?=[^>]*viewBox="([^"]*)")[^>]*>', rf'{head} viewBox="\1" xmlns:xlink="http://www.w3.org/1999/xlink">', svg, count=1
    )
    return svg.strip()
