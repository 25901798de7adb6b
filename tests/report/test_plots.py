"""The pictures with the least, the most and the oddest data that a run may have."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
from markupsafe import Markup

from tunemill.report import plots

HOSTILE = "<b>$x$ & שלום 🎻"
ONE = np.array([3.0])
MANY = np.arange(1.0, 2000.0)
PICTURES = {
    "histogram": lambda: plots.histogram([0.9, 0.95, 1.0], [1, 2], title=HOSTILE, x="x", y="y", cut=0.93, cut_name=HOSTILE),
    "histogram without cut": lambda: plots.histogram([0.0, 1.0], [5], title="t", x="x", y="y"),
    "latencies of zero": lambda: plots.latencies({HOSTILE: np.zeros(3), "none": np.array([])}),
    "latencies of many models": lambda: plots.latencies({str(i): MANY / (i + 1) for i in range(6)}),
    "one length": lambda: plots.lengths({"prompt": ONE, "answer": ONE}, None),
    "lengths far below the limit": lambda: plots.lengths({"together": MANY}, 100_000),
    "lengths about the limit": lambda: plots.lengths({"together": MANY}, 1024),
    "scatter without target": lambda: plots.scatter(ONE, ONE, np.array([0]), None),
    "scatter of many clusters": lambda: plots.scatter(MANY, MANY, (MANY % 11).astype(np.int64), 3),
    "bars over a wide range": lambda: plots.bars(["2", "3"], [90_000, 1], title="t", x="x", y="y"),
    "stacked": lambda: plots.stacked({"all": {HOSTILE: 5, "b": 0}, "none": {}}, [HOSTILE, "b"]),
    "stacked with many labels": lambda: plots.stacked({"all": {str(i): i for i in range(12)}}, [str(i) for i in range(12)]),
    "curve of one step": lambda: plots.curve(ONE, ONE, [], []),
    "curve of validation only": lambda: plots.curve(np.array([]), np.array([]), [(1, 0.5), (2, 0.4)], []),
    "confusion of a class without rows": lambda: plots.confusion({"base": [[0, 0], [1, 2]]}, [HOSTILE, "b"]),
    "confusion of many labels": lambda: plots.confusion({"a": np.eye(30).tolist(), "b": np.eye(30).tolist()}, ["label"] * 30),
    "roc": lambda: plots.roc({HOSTILE: (np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0]))}, HOSTILE),
}


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_is_valid_svg_that_follows_the_page(name: str) -> None:
    """Well-formed, described for screen readers, with the page's colours and fonts, and with texts as texts."""
    svg = PICTURES[name]()
    assert isinstance(svg, Markup)
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg"
    assert root.get("aria-label")
    assert "var(--ink)" in svg or "var(--faint)" in svg
    assert "#01020" not in svg
    assert "font-family" not in svg
    assert "<b>" not in svg
    assert "mathdefault" not in svg
    shown = "".join(root.itertext())
    assert HOSTILE in shown or "שלום" not in shown


def test_pictures_do_not_change_from_one_report_to_the_next() -> None:
    """The same data gives the same bytes."""
    assert plots.stacked({"all": {"a": 1}}, ["a"]) == plots.stacked({"all": {"a": 1}}, ["a"])
