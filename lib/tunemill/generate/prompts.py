"""The prompt plan: which prompt stands at place i. Pure, random access, stable when ``rows`` grows.

Labels come in shuffled rounds, so any prefix holds each label equally often up to one. The k-th prompt
of a label takes the k-th combination of the other variables in a seeded random order; combinations
repeat only when all have been used, and a repeat has a higher sample number.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math

from tunemill.generate.config import GenerateConfig, template_names
from tunemill.generate.shuffle import permuted
from tunemill.generate.variables import Axis, load_axis

__all__ = ["PlannedPrompt", "PromptPlan", "make_plan", "prompt_id"]


@dataclasses.dataclass(frozen=True, slots=True)
class PlannedPrompt:
    """One prompt of a plan."""

    prompt: str
    prompt_id: str
    label: str | None
    variables: dict[str, str]
    """Exactly the variables in the prompt."""
    repeat: int
    """How often the plan had this prompt before."""


@dataclasses.dataclass(frozen=True)
class PromptPlan:
    """All prompts of a configuration and seed, by place; the plan does not depend on how many are taken."""

    template: str
    system: str | None
    axes: tuple[Axis, ...]
    """The variables that are not the label, in the order of the template."""
    label: Axis | None
    seed: int

    @property
    def combinations(self) -> int:
        """How many different prompts there are for each label."""
        return math.prod(axis.size for axis in self.axes)

    def at(self, index: int) -> PlannedPrompt:
        """The prompt at this place, 0 <= index."""
        label, turn = self._label_at(index)
        repeat, place = divmod(turn, self.combinations)
        number = permuted(place, self.combinations, f"{self.seed}:{label}:{repeat}")
        variables = {}
        for axis in self.axes:
            number, own = divmod(number, axis.size)
            variables[axis.name] = axis.value(own)
        if self.label is not None and label is not None:
            variables[self.label.name] = label
        ordered = {name: variables[name] for name in template_names(self.template)}
        prompt = self.template.format_map(ordered)
        return PlannedPrompt(prompt, prompt_id(prompt, self.system), label, ordered, repeat)

    def _label_at(self, index: int) -> tuple[str | None, int]:
        """The label at a place and how often it came before."""
        if self.label is None:
            return None, index
        values = self.label.values()
        turn, place = divmod(index, len(values))
        return values[permuted(place, len(values), f"{self.seed}:label:{turn}")], turn


def make_plan(config: GenerateConfig, seed: int) -> PromptPlan:
    """The plan of a configuration; ConfigError for whatever is missing from it or from its files."""
    config.check_variables()
    axes = tuple(load_axis(name, config.variables[name]) for name in template_names(config.template))
    label = next((axis for axis in axes if axis.name == config.label), None)
    return PromptPlan(config.template, config.system, tuple(axis for axis in axes if axis is not label), label, seed)


def prompt_id(prompt: str, system: str | None) -> str:
    """Identity of a prompt: a hash (24 hex digits) of its texts."""
    state = hashlib.blake2b(digest_size=12)
    for text in (system or "", prompt):
        part = text.encode("utf-8", "surrogatepass")
        state.update(len(part).to_bytes(8, "big") + part)
    return state.hexdigest()
