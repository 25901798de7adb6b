"""Split an answer into segments (sentences, list items, lines) in any language. Pure, no models, no word lists.

Boundaries come from Unicode's sentence-ending marks and from the layout; the next letter decides the
doubtful ones: a full stop before a lower-case letter, after an initial or a short title, inside a number,
an address or an abbreviation with inner stops does not end a sentence.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["is_finished", "split_segments", "trimmed"]

# Marks that end a sentence wherever they stand: scripts that write no space after them.
_WIDE_ENDS = "。！？｡︒﹖﹗．"
# Marks that end a sentence before a space: Latin, Arabic, Urdu, Devanagari, Armenian, Ethiopic, Khmer, Burmese, Tibetan.
_ENDS = ".!?…‼⁇⁈⁉" + "؟۔" + "।॥" + "։" + "።፧፨" + "។៕" + "။" + "།"
_CLOSERS = "\"'”’»›)]}」』】）》〉*_`״"
_OPENERS = "\"'“„‘«‹([{「『【（《〈¿¡*_`"
_BULLET = re.compile(r"^\s*(?:[-*+•‣◦▪●·–—]|\(?\d{1,3}[.)、．]|\(?[A-Za-z][)])\s+")
_HEADING = re.compile(r"^\s{0,3}#{1,6}\s+")
_QUOTED_LINE = re.compile(r"^\s*>+\s?")
_RULE = re.compile(r"^\s*(?:[-*_=~`]\s*){3,}\w*\s*$")
_LEAD_IN = re.compile(r"^(?P<lead>[^\n]{1,200}?[:：])\s*(?P<rest>[\"“„«「『‘].*)$", re.DOTALL)
_EMPHASIS = re.compile(r"^(\*{1,3}|_{1,3}|`{1,3})([^*_`]+)\1$")
# Short forms before a name or a number, where a capital letter follows without a new sentence.
_TITLES = {
    *("mr", "mrs", "ms", "dr", "prof", "st", "sr", "jr", "sra", "srta", "dra", "ud", "uds", "mme", "mlle", "gen", "col", "capt"),
    *("vs", "no", "nr", "fig", "vol", "approx", "cf", "bzw", "ca", "z.b", "d.h", "e.g", "i.e"),
}
_PAIRS = {'"': '"', "“": "”", "„": "“", "«": "»", "「": "」", "『": "』", "‘": "’"}


def split_segments(text: str) -> list[str]:
    """The segments of an answer in order, none empty; their letters are those of the text, in the same order.

    Marks of lists, headings and quotations at the start of a line are layout and go.
    """
    segments: list[str] = []
    for block in _blocks(text):
        for part in _lead_ins(block):
            segments += _sentences(part)
    return _with_words(segments)


def trimmed(segment: str) -> str:
    """A segment without quotes and emphasis that wrap all of it, or whose partner is in another segment."""
    text = _EMPHASIS.sub(r"\2", segment.strip())
    while len(text) > 1:
        first, last = text[0], text[-1]
        closer = _PAIRS.get(first)
        if closer is not None and last == closer and text.count(first) == (2 if first == closer else 1):
            text = text[1:-1].strip()
        elif closer is not None and closer not in text[1:]:
            text = text[1:].strip()
        elif last in _PAIRS.values() and last not in "'’" and text.count(last) == 1 and not _opened(text, last):
            text = text[:-1].strip()
        else:
            break
    return text


def is_finished(segment: str) -> bool:
    """True where a segment ends in a sentence-ending mark, quotes and emoji behind it left aside."""
    text = segment.rstrip()
    while text and (text[-1] in _CLOSERS or text[-1].isspace() or _is_picture(text[-1])):
        text = text[:-1]
    return bool(text) and text[-1] in _ENDS + _WIDE_ENDS


def _opened(text: str, closer: str) -> bool:
    return any(opener in text[:-1] for opener, own in _PAIRS.items() if own == closer)


def _blocks(text: str) -> list[str]:
    """Lines, with soft-wrapped ones joined again, without layout marks."""
    blocks: list[str] = []
    joinable = False
    for raw in re.split(r"\r\n|[\n\r\v\f\u0085\u2028\u2029]", text):
        if not raw.strip() or _RULE.match(raw):
            joinable = False
            continue
        listed = bool(_BULLET.match(raw) or _HEADING.match(raw))
        line = _BULLET.sub("", _HEADING.sub("", _QUOTED_LINE.sub("", raw))).strip()
        if not line:
            joinable = False
        elif joinable and not listed and line[0].islower():
            blocks[-1] = f"{blocks[-1]} {line}"
        else:
            blocks.append(line)
        joinable = bool(line) and line[-1] not in _ENDS + _WIDE_ENDS + _CLOSERS + ":："
    return blocks


def _lead_ins(block: str) -> list[str]:
    """`Here is the sentence: "..."` in two, where the quotation runs to the end of the block."""
    found = _LEAD_IN.match(block)
    if not found:
        return [block]
    rest = found["rest"].rstrip()
    closer = _PAIRS[rest[0]]
    return [found["lead"], rest] if rest.endswith(closer) and rest.count(closer) <= 2 and len(rest) > 2 else [block]


def _sentences(block: str) -> list[str]:
    parts: list[str] = []
    start = position = 0
    while position < len(block):
        if block[position] not in _ENDS and block[position] not in _WIDE_ENDS:
            position += 1
            continue
        end = position
        while end < len(block) and block[end] in _ENDS + _WIDE_ENDS:
            end += 1
        marks = block[position:end]
        while end < len(block) and block[end] in _CLOSERS:
            end += 1
        after = _after_pictures(block, end)
        if _is_boundary(block[start:position], marks, block[end:after], block[after:]):
            parts.append(block[start:after].strip())
            start = after
        position = max(after if start == after else end, position + 1)
    parts.append(block[start:].strip())
    return [part for part in parts if part]


def _is_boundary(before: str, marks: str, pictures: str, rest: str) -> bool:
    """Whether ``marks`` end the sentence ``before``; ``pictures`` are the emoji behind them, ``rest`` what follows."""
    following = rest.lstrip()
    if not following or any(mark in _WIDE_ENDS for mark in marks):
        return True
    if not (pictures or rest[0].isspace()):
        return False
    first = next((char for char in following if char not in _OPENERS), "")
    if first.islower():
        return False
    return marks != "." or not _is_short_form(before, first)


def _is_short_form(before: str, first: str) -> bool:
    """True where a full stop after ``before`` belongs to an initial, a title or a list number."""
    word = re.split(r"[\s(\[\"“„«'’—–]", before)[-1]
    if not word:
        return False
    if word.lower() in _TITLES:
        return True
    if len(word) == 1 or re.fullmatch(r"(?:\w\.)+\w", word):
        # An initial (J. Smith, د. أحمد) or an abbreviation with inner stops (U.S. Navy); a pronoun "I." ends a sentence.
        return (word.isupper() and word != "I" and first.isalpha()) or "ARABIC" in unicodedata.name(word[0], "")
    return word.isdigit() and before.strip() == word


def _after_pictures(block: str, end: int) -> int:
    """Where the emoji that follow a sentence end; they belong to the sentence before them."""
    place = end
    while place < len(block) and (block[place] in " \u00a0" or _is_picture(block[place])):
        place += 1
    return place if any(_is_picture(char) for char in block[end:place]) else end


def _is_picture(char: str) -> bool:
    return unicodedata.category(char) in ("So", "Sk") or char in "\ufe0f\u200d\u20e3"


def _with_words(segments: list[str]) -> list[str]:
    """Segments without a letter or digit join the one before them (or after, at the start)."""
    joined: list[str] = []
    for segment in segments:
        if joined and not (_has_word(segment) and _has_word(joined[-1])):
            joined[-1] = f"{joined[-1]} {segment}"
        else:
            joined.append(segment)
    return joined


def _has_word(text: str) -> bool:
    return any(char.isalnum() for char in text)
