"""Segments of answers in many languages and layouts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunemill.clean.answers import decide
from tunemill.clean.keywords import Patterns
from tunemill.clean.padding_clusters import Clusters
from tunemill.clean.segments import is_finished, split_segments, trimmed

CASES = {
    "english": ("I love it. It is great! Is it? Yes.", ["I love it.", "It is great!", "Is it?", "Yes."]),
    "titles": ("Dr. Smith met Mr. J. R. Jones. They ate.", ["Dr. Smith met Mr. J. R. Jones.", "They ate."]),
    "numbers": ("It cost 3.50 euros at v2.1. Cheap!", ["It cost 3.50 euros at v2.1.", "Cheap!"]),
    "abbreviations": (
        "Fruit, e.g. apples, etc. are fine. So is the U.S. Navy.",
        ["Fruit, e.g. apples, etc. are fine.", "So is the U.S. Navy."],
    ),
    "address": ("See example.com for more. Bye.", ["See example.com for more.", "Bye."]),
    "ellipsis": ("Well... maybe not. Fine…", ["Well... maybe not.", "Fine…"]),
    "speech": ('"Stop!" he said. "Go away."', ['"Stop!" he said.', '"Go away."']),
    "quotes": ("“We won.” The crowd sang.", ["“We won.”", "The crowd sang."]),
    "hebrew": ("אני אוהב את זה. נהדר! ומה אתך?", ["אני אוהב את זה.", "נהדר!", "ומה אתך?"]),
    "hebrew acronym": ('ד"ר כהן גר בארה"ב. הוא שמח.', ['ד"ר כהן גר בארה"ב.', "הוא שמח."]),
    "arabic": ("هذا رائع. هل أعجبك؟ نعم!", ["هذا رائع.", "هل أعجبك؟", "نعم!"]),
    "arabic title": ("قال د. أحمد ذلك. شكرا.", ["قال د. أحمد ذلك.", "شكرا."]),
    "urdu": ("یہ اچھا ہے۔ وہ برا ہے۔", ["یہ اچھا ہے۔", "وہ برا ہے۔"]),
    "korean": ("정말 좋아요. 최고예요! 그렇죠?", ["정말 좋아요.", "최고예요!", "그렇죠?"]),
    "chinese": ("我很喜欢。太好了！真的吗？是的", ["我很喜欢。", "太好了！", "真的吗？", "是的"]),
    "chinese quotes": ("他说：“很好。”我们走了。", ["他说：“很好。”", "我们走了。"]),
    "japanese": ("「最高だ。」と言った。終わり。", ["「最高だ。」", "と言った。", "終わり。"]),
    "spanish": ("¡Qué bien! ¿Te gusta? Sí, Sra. López.", ["¡Qué bien!", "¿Te gusta?", "Sí, Sra. López."]),
    "hindi": ("यह अच्छा है। वह बुरा है॥", ["यह अच्छा है।", "वह बुरा है॥"]),
    "emoji": ("Great day! 😊🎉 We swam. 🏊‍♀️", ["Great day! 😊🎉", "We swam. 🏊‍♀️"]),
    "only emoji": ("🌱🌊", ["🌱🌊"]),
    "bullets": ("Here:\n- one thing\n* another thing\n• third", ["Here:", "one thing", "another thing", "third"]),
    "numbered": ("1. First thing.\n2) Second thing. More.", ["First thing.", "Second thing.", "More."]),
    "markdown": ("## Title\n\n> Quoted line.\n\n---\n**Bold end.** Next.", ["Title", "Quoted line.", "**Bold end.**", "Next."]),
    "soft wrap": ("This line goes\non here.\nA new one", ["This line goes on here.", "A new one"]),
    "lead-in": ('Sure, a line: "I love olives."', ["Sure, a line:", '"I love olives."']),
    "colon": ("One rule: never stop.", ["One rule: never stop."]),
    "blank": (" \n\t ", []),
    "marks": ("...", ["..."]),
    "trailing mark": ("Good\n!!!", ["Good !!!"]),
}


@pytest.mark.parametrize("name", CASES)
def test_answers_fall_into_their_sentences(name: str) -> None:
    """Each language's marks end its sentences, and doubtful stops do not."""
    text, segments = CASES[name]
    assert split_segments(text) == segments


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=80))
def test_no_letter_is_lost_or_moved(text: str) -> None:
    """Whatever the text, its segments hold its letters in order, save a list's own marks."""
    letters = "".join(char for char in text if char.isalpha())
    kept = "".join(char for segment in split_segments(text) for char in segment if char.isalpha())
    if not set(text) & set(")-*_=~`"):
        assert kept == letters
    rest = iter(letters)
    assert all(char in rest for char in kept)


@pytest.mark.parametrize(
    ("segment", "text"),
    [
        ('"I love it."', "I love it."),
        ('"I love it.', "I love it."),
        ('I love it."', "I love it."),
        ("**Bold.**", "Bold."),
        ("“שלום”", "שלום"),
        ('Say "yes"', 'Say "yes"'),
        ('"Yes" and "no"', '"Yes" and "no"'),
        ("the dogs’", "the dogs’"),
        ("「好」", "好"),
        ('"', '"'),
    ],
)
def test_wrapping_and_unpaired_quotes_go(segment: str, text: str) -> None:
    """Quotes around the whole segment and halves of a pair are removed; inner quotations stay."""
    assert trimmed(segment) == text


@pytest.mark.parametrize("segment", ["Yes.", 'He said "no!"', "太好了！”", "نعم؟", "Great! 😊🎉", "यह अच्छा है।", "**Done.**"])
def test_finished_sentences_are_known_in_every_script(segment: str) -> None:
    """Quotes, emphasis and emoji behind the mark do not matter; without a mark a sentence is cut."""
    assert is_finished(segment)
    assert not is_finished("and then the")


def test_a_cut_last_sentence_is_not_the_wanted_one() -> None:
    """Where max_tokens cut an answer, its half sentence loses even if it lies nearest to the centre."""
    clusters = Clusters(
        mean=np.zeros(1, np.float32),
        components=np.ones((1, 1), np.float32),
        centres=np.zeros((1, 1), np.float32),
        target=0,
        reach=1.0,
        explained_variance=(1.0,),
        covered=(1.0,),
    )
    near = {"I love it.": 0.5, "So does": 0.1}
    answer = decide("I love it. So does", list(near), lambda s: (0, near[s]), Patterns(()), clusters)
    assert answer == ("I love it.", 0, None)
