"""A byte-level toy tokenizer with any chat template, for templates that are wrong on purpose; and sample texts."""

from __future__ import annotations

import importlib
import random
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tunemill.chat.conversations import Message
from tunemill.chat.huggingface import HuggingFaceChat
from tunemill.chat.probes import conversation

_HEADERS = "{'system': '<sys>', 'user': '<user>', 'assistant': '<bot>'}"
SPECIAL = ("<pad>", "<bos>", "<sys>", "<user>", "<bot>", "<end>")
GOOD = (
    "{{ '<bos>' }}{% for m in messages %}{{ " + _HEADERS + "[m['role']] + m['content'] + '<end>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<bot>' }}{% endif %}"
)
"""A template without faults."""


def toy_tokenizer(template: str | None, *, extra: Sequence[str] = ()) -> Any:
    """A transformers tokenizer with one token for each byte, SPECIAL flagged special, ``extra`` added but not flagged."""
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    backend.add_tokens([AddedToken(token, normalized=False) for token in extra])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<end>", pad_token="<pad>", chat_template=template
    )


def toy(template: str | None = GOOD, *, prompt_loss_weight: float = 0.0, extra: Sequence[str] = ()) -> HuggingFaceChat:
    """The toy tokenizer as a chat tokenizer."""
    return HuggingFaceChat("toy", toy_tokenizer(template, extra=extra), prompt_loss_weight=prompt_loss_weight)


_MODULES = (
    "argparse",
    "ast",
    "asyncio",
    "base64",
    "bisect",
    "calendar",
    "codecs",
    "collections",
    "configparser",
    "contextlib",
    "copy",
    "csv",
    "dataclasses",
    "datetime",
    "decimal",
    "difflib",
    "dis",
    "email",
    "enum",
    "fractions",
    "functools",
    "gettext",
    "glob",
    "gzip",
    "hashlib",
    "heapq",
    "hmac",
    "html",
    "http",
    "inspect",
    "io",
    "ipaddress",
    "itertools",
    "json",
    "keyword",
    "linecache",
    "locale",
    "logging",
    "mailbox",
    "math",
    "mimetypes",
    "numbers",
    "operator",
    "os",
    "pathlib",
    "pdb",
    "pickle",
    "pkgutil",
    "platform",
    "plistlib",
    "pprint",
    "queue",
    "random",
    "re",
    "sched",
    "secrets",
    "selectors",
    "shelve",
    "shlex",
    "shutil",
    "signal",
    "smtplib",
    "socket",
    "sqlite3",
    "ssl",
    "statistics",
    "string",
    "stringprep",
    "struct",
    "subprocess",
)
_FOREIGN = (
    "שלום, אני רוצה להזמין שולחן לשניים ביום חמישי בשעה 19:30.",
    "أريد حجز غرفة لليلتين، من فضلك؛ هل الإفطار مشمول؟",
    "내일 오전 9시에 서울역에서 만날까요? 네, 좋아요!",
    "请帮我订一张去上海的火车票。早上八点的可以吗?",
    "¿Podrías recomendarme un restaurante cerca de la plaza? ¡Claro que sí!",
    "Où est la gare ? À gauche, puis tout droit — 200 m.",
    "Точно так, спасибо! Встретимся в 18:00 у входа.",
    "दो टिकट चाहिए, कृपया।",
    "今日は暑いですね。アイスクリームを食べませんか?",
    "👩🏽‍🚀🚀🌕 … 🇧🇷🇰🇷 ok 👍🏿",
)
_SYSTEMS = (None, "You are brief.", "You are a helper.\n\nAnswer politely; never invent numbers.", "  padded  ", "")


def real_conversations(count: int, seed: int = 0) -> list[tuple[Message, ...]]:
    """Conversations of one to six exchanges from real prose: the documentation of Python's library, and ten languages."""
    draw = random.Random(seed)
    prose = [text for name in _MODULES if (text := (importlib.import_module(name).__doc__ or "").strip())]
    sentences = [line for text in prose for line in text.split("\n\n") if line.strip()] + list(_FOREIGN) * 8

    def turn() -> str:
        text = "\n\n".join(draw.sample(sentences, draw.choice((1, 1, 1, 2, 3))))
        return draw.choice(("", "", "", " ", "\n")) + text + draw.choice(("", "", "", " ", "  ", "\n"))

    return [conversation(*(turn() for _ in range(2 * draw.randint(1, 6))), system=draw.choice(_SYSTEMS)) for _ in range(count)]


TRICKY = (
    "[INST]",
    "[/INST]",
    "<s>",
    "</s>",
    "[SYSTEM_PROMPT]",
    "<bos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|im_start|>",
    "<|im_end|>",
)
"""Names of control tokens of the families under test."""


def texts(*, tricky: bool = True, answer: bool = False) -> st.SearchStrategy[str]:
    """Any text that UTF-8 can hold, with control tokens' names and white space mixed in; answers hold a visible character."""
    # U+2581 and what SmolLM2's vocabulary has no bytes for cannot be written in tokens; other tests show that it is refused.
    anything = st.text(st.characters(exclude_categories=("Cs", "Cc", "Co", "Cn"), exclude_characters="\u2581"), max_size=30)
    spaces = st.sampled_from((" ", "  ", "\n", "\n\n", "\t", "\x01", "\u00a0", "\u200b", "\r\n"))
    words = st.sampled_from(("Hello", " world", "naïve", "שלום", "你好", "안녕", "12345", "[x]", "<y>", "f(x)=1;", "'s", "don’t"))
    pieces = st.one_of(anything, spaces, words, *([st.sampled_from(TRICKY)] if tricky else []))
    joined = st.lists(pieces, max_size=6).map("".join)
    return joined.filter(lambda text: bool(text.strip())) if answer else joined


def conversations(*, tricky: bool = True) -> st.SearchStrategy[tuple[Message, ...]]:
    """Conversations of one to four exchanges, with or without (possibly empty) system text."""
    exchange = st.tuples(texts(tricky=tricky), texts(tricky=tricky, answer=True))
    exchanges = st.lists(exchange, min_size=1, max_size=4)
    systems = st.one_of(st.none(), texts(tricky=tricky))
    return st.builds(lambda turns, system: conversation(*(t for pair in turns for t in pair), system=system), exchanges, systems)
