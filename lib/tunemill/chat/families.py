"""What differs between families of chat templates, found by asking the template itself.

Where the system text goes (a template may have no place for it, or lose it when the last turn is an
answer, as Mistral's does) and which white space is stripped from the turns' texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal

from tunemill.chat.conversations import Message
from tunemill.chat.skeleton import Render, mark
from tunemill.errors import TemplateError

__all__ = ["GEMMA_TEMPLATE", "Family", "find_family"]

GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{{ message['content'] | trim }}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
"""The published turn format of Gemma 1 and 2, for copies of the tokenizer that carry no template."""

_BLANK_LINE = "\n\n"
_PROBE = "\n \tx  y\u00a0\t \n "
_STRIPS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("nothing", lambda text: text),
    ("both ends", str.strip),
    ("the end", str.rstrip),
    ("the beginning", str.lstrip),
    ("spaces at the end", lambda text: text.rstrip(" ")),
    ("newlines at both ends", lambda text: text.strip("\n")),
)


@dataclass(frozen=True)
class Family:
    """The rules of one tokenizer's template."""

    name: str
    system: Literal["native", "first_user", "last_user"]
    strips: Mapping[str, int]
    """For each role, what the template strips (index into the known ways)."""

    def place(self, messages: Sequence[Message]) -> list[Message]:
        """Put the system text where this family needs it."""
        if self.system == "native" or messages[0]["role"] != "system":
            return list(messages)
        body = [dict(message) for message in messages[1:]]
        users = [place for place, message in enumerate(body) if message["role"] == "user"]
        if messages[0]["content"] and users:
            bearer = body[users[0] if self.system == "first_user" else users[-1]]
            bearer["content"] = f"{messages[0]['content']}{_BLANK_LINE}{bearer['content']}"
        return body

    def prepared(self, messages: Sequence[Message]) -> list[Message]:
        """What the template is given: Mistral's own tokenizers strip spaces that its template keeps."""
        if self.name != "mistral":
            return list(messages)
        return [{**m, "content": m["content"].rstrip(" ")} if m["role"] == "assistant" else m for m in messages]

    def stripped(self, role: str, text: str) -> str:
        """``text`` as it stands in the rendered conversation."""
        if self.name == "mistral" and role == "assistant":
            text = text.rstrip(" ")
        return _STRIPS[self.strips.get(role, 0)][1](text)


def find_family(render: Render, special: Set[str]) -> Family:
    """Ask the template for its rules; TemplateError when it follows none that is known."""
    name = "mistral" if {"[INST]", "[/INST]"} <= special else "gemma" if "<start_of_turn>" in special else "generic"
    system = _system_rule(render)
    roles = ("system", "user", "assistant") if system == "native" else ("user", "assistant")
    return Family(name, system, {role: _strip_rule(render, role) for role in roles})


def _system_rule(render: Render) -> Literal["native", "first_user", "last_user"]:
    turns = [("system", mark(0)), ("user", mark(1)), ("assistant", mark(2)), ("user", mark(3)), ("assistant", mark(4))]
    messages = [{"role": role, "content": text} for role, text in turns]

    def folded(place: int) -> list[Message]:
        body = [dict(message) for message in messages[1:]]
        body[place]["content"] = f"{mark(0)}{_BLANK_LINE}{body[place]['content']}"
        return body

    training = _rendered(render, messages)
    if training is not None and training == _rendered(render, folded(2)):
        return "last_user"
    # A template without a branch for system turns may write them as another role's: that is no place for them.
    mistaken = any(
        training == _rendered(render, [{**messages[0], "role": role}, *messages[1:]]) for role in ("user", "assistant")
    )
    if training is not None and training.count(mark(0)) == 1 and not mistaken:
        return "native"
    if mistaken:
        return "first_user"
    serving = _rendered(render, messages[:-1], prompt=True)
    if serving is None or mark(0) not in serving:
        return "first_user"
    if serving == _rendered(render, folded(2)[:-1], prompt=True):
        return "last_user"
    if serving == _rendered(render, folded(0)[:-1], prompt=True):
        return "first_user"
    raise TemplateError("the template loses the system text when the last turn is an answer, and its place is not a known one")


def _rendered(render: Render, messages: Sequence[Message], *, prompt: bool = False) -> str | None:
    try:
        return render(messages, prompt=prompt)[0]
    except TemplateError:
        return None


def _strip_rule(render: Render, role: str) -> int:
    """Which white space the template strips from texts of ``role``."""
    roles = ("system", "user", "assistant") if role == "system" else ("user", "assistant")
    place = roles.index(role)
    messages = [{"role": r, "content": mark(i)} for i, r in enumerate(roles)]
    expected = render(messages)[0]
    messages[place]["content"] = _PROBE
    found = render(messages)[0]
    for index, (_, strip) in enumerate(_STRIPS):
        if found == expected.replace(mark(place), strip(_PROBE)):
            return index
    raise TemplateError(f"the template changes the {role}'s text in a way that is not known: {found!r}")
