"""The parts of the page: each reads a run folder and gives its template what to show, or None for nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunemill.report.folder import RunFolder
from tunemill.report.sections.data import balance_section, cleaning_section, latency_section, plan_section, sample_section
from tunemill.report.sections.duplicates import duplicates_section
from tunemill.report.sections.overview import funnel_section, recipe_section
from tunemill.report.sections.training import evaluation_section, template_section, training_section

__all__ = ["SECTIONS", "Section"]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of the page; ``name`` is its anchor and the name of its template."""

    name: str
    title: str
    contents: Callable[[RunFolder], dict[str, Any] | None]


SECTIONS = (
    Section(name="funnel", title="From rows in to rows left", contents=funnel_section),
    Section(name="results", title="Before and after tuning", contents=evaluation_section),
    Section(name="plan", title="Plan and cost", contents=plan_section),
    Section(name="balance", title="Labels and models", contents=balance_section),
    Section(name="latency", title="Answer latency", contents=latency_section),
    Section(name="cleaning", title="Cleaning", contents=cleaning_section),
    Section(name="duplicates", title="Near-duplicates", contents=duplicates_section),
    Section(name="template", title="Chat template and lengths", contents=template_section),
    Section(name="training", title="Training", contents=training_section),
    Section(name="sample", title="A sample of the final rows", contents=sample_section),
    Section(name="recipe", title="Configuration and versions", contents=recipe_section),
)
