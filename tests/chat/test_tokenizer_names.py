"""Names of tokenizers: what they lead to, and one clear line for those that lead nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from chat.toy import GOOD, real_conversations, toy, toy_tokenizer
from tunemill.chat.probes import conversation
from tunemill.chat.tokenizer import load
from tunemill.errors import ConfigError, TemplateError


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("v1", "tokenizer.model.v1"),
        ("v7", "mistral_instruct_tokenizer_241114.model.v7"),
        ("tekken", "tekken_240911.json"),
        ("tokenizer.model.v1", "tokenizer.model.v1"),
    ],
)
def test_short_names_and_bundled_files(name: str, file: str) -> None:
    """Short names stand for the files that come with mistral-common; any of its files can be named."""
    assert load(f"mistral-common/{name}").facts()["source"] == f"mistral-common {file}"


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("mistral-common/v33", ConfigError, "did you mean mistral-common/v3"),
        ("mistral-common/teken", ConfigError, "did you mean mistral-common/tekken"),
        ("mistral-comon/v3", ConfigError, "did you mean 'mistral-common/v3'"),
        ("embedded/smolm2-135m", ConfigError, "embedded/smollm2-135m"),
        ("./nowhere", ConfigError, "no such folder"),
        ("someone/never-published", ConfigError, "not found"),
    ],
)
def test_unknown_names_give_the_nearest(name: str, error: type[Exception], says: str) -> None:
    """A misspelt name is told apart from a missing folder."""
    with pytest.raises(error, match=says) as caught:
        load(name)
    assert "\n" not in str(caught.value)


def test_tokenizer_without_template_is_one_clear_line(tmp_path: Path) -> None:
    """The message says what to use instead."""
    toy_tokenizer(None).save_pretrained(tmp_path)
    with pytest.raises(
        TemplateError, match="carries no chat template; use the tokenizer of the model's instruct version"
    ) as caught:
        load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_folder_without_tokenizer_is_one_clear_line(tmp_path: Path) -> None:
    """An empty folder is no tokenizer."""
    with pytest.raises(TemplateError, match="holds no tokenizer") as caught:
        load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_saved_tokenizers_give_the_same_ids(tmp_path: Path) -> None:
    """What is written beside an adapter reads back to the same ids: Hugging Face, SentencePiece and tekken."""
    rows = [*real_conversations(10), conversation("<bot> </s> [INST]", "x")]
    for number, tokenizer in enumerate([toy(GOOD), load("mistral-common/v3"), load("mistral-common/tekken")]):
        folder = tmp_path / str(number)
        tokenizer.save(str(folder))
        assert load(str(folder)).encode_batch(rows) == tokenizer.encode_batch(rows)
