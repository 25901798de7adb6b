"""Writes the report of a run: one HTML file that needs nothing else, neither network nor other files."""

from __future__ import annotations

import time
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tunemill.report.folder import RunFolder, open_run
from tunemill.report.sections import SECTIONS
from tunemill.report.sections.overview import duration, headline, key_figures
from tunemill.store import Location

__all__ = ["render", "write_report"]


def write_report(run: Location) -> Location:
    """Write ``RUN/report.html`` of a finished, running or half-finished run, or of one stage's own folder.

    Returns where it was written. Raises DataError when there is no run.
    """
    page = run.join("report.html")
    page.write_text(render(open_run(run)))
    return page


def render(run: RunFolder) -> str:
    """The page's HTML. Texts of rows are untrusted: everything is escaped unless it was made as Markup here."""
    environment = Environment(
        loader=PackageLoader("tunemill.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=_number, decimal=_decimal, usd=_usd)
    environment.globals.update(whole=_whole, usd=_usd, hours=_hours)
    style, _, _ = environment.loader.get_source(environment, "style.css") if environment.loader else ("", None, None)
    found = [(section, contents) for section in SECTIONS if (contents := section.contents(run)) is not None]
    finished = [name for name in run.expected if name in run.manifests]
    return environment.get_template("page.html").render(
        name=run.folder.name,
        state="finished" if len(finished) == len(run.expected) else "unfinished",
        missing=[name for name in run.expected if name not in run.manifests],
        created=max((manifest.created_at for manifest in run.manifests.values()), default=""),
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        headline=headline(run),
        figures=key_figures(run),
        style=Markup(style),
        sections=found,
    )


def _number(value: Any) -> str:
    """A count with thousands separators; a dash for nothing."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if isinstance(value, float) else str(value)


def _decimal(value: Any, places: int = 3, sign: bool = False) -> str:
    """A number with fixed places; a dash for nothing."""
    text = "–" if value is None else f"{value:+.{places}f}" if sign else f"{value:.{places}f}"
    return text.replace("-", "−")


def _whole(value: float) -> str:
    """A count that is an estimate."""
    return f"{value:,.0f}"


def _hours(value: float) -> str:
    """Hours as people say them."""
    return duration(3600 * value)


def _usd(value: Any) -> str:
    """Dollars: cents, or four places below one cent."""
    return "–" if value is None else f"${value:,.2f}" if value >= 0.01 or value == 0 else f"${value:.4f}"
