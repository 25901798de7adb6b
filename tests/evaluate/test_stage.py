"""The stage as a whole: a tiny random model behind the real SmolLM2 chat template.

One test sends the rows through Ray's actor pool; the others call the same worker in this process.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from tunemill.chat.tokenizer import load
from tunemill.embedded import EMBEDDED_MODEL
from tunemill.errors import ConfigError, DataError
from tunemill.evaluate import stage
from tunemill.evaluate.config import EvaluateConfig
from tunemill.evaluate.workers import ScoreRows, ScoringPlan
from tunemill.progress import Progress
from tunemill.stage import Outcome, new_context
from tunemill.store import Location, Manifest, StageStore
from tunemill.tables import FileSource, InputConfig


@dataclass(frozen=True)
class Table:
    """The two calls of a Ray Dataset that the stage makes."""

    rows: list[dict[str, Any]]

    def select_columns(self, names: list[str]) -> Table:
        """The named columns."""
        return Table([{name: row[name] for name in names} for row in self.rows])

    def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
        """Everything at once."""
        yield pa.Table.from_pylist(self.rows)


@dataclass(frozen=True)
class Rows:
    """Rows in memory as a source."""

    rows: list[dict[str, Any]]

    @property
    def describe(self) -> dict[str, Any]:
        """A constant identity."""
        return {"fingerprint": "rows"}

    def count(self) -> int:
        """How many."""
        return len(self.rows)

    def columns(self) -> list[str]:
        """Columns of the first row."""
        return list(self.rows[0])

    def dataset(self) -> Table:
        """The rows."""
        return Table(self.rows)


def conversation(number: int, split: str, answer: str | None = None) -> dict[str, Any]:
    """A row as the template stage leaves it."""
    label = ("positive", "negative")[number % 2]
    question = {"role": "user", "content": f"Sentence {'very ' * (number % 7)}{number}"}
    turns = [question, {"role": "assistant", "content": answer or label}]
    return {"id": f"r{number:03}", "split": split, "messages": turns, "label": label, "input_ids": [1, 2]}


ROWS = [conversation(i, "test" if i < 90 else "train") for i in range(110)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A random base model with SmolLM2's tokenizer and a random adapter for it."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=400,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    load(EMBEDDED_MODEL).save(str(folder / "base"))
    base = LlamaForCausalLM.from_pretrained(folder / "base")
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(base, lora).save_pretrained(folder / "adapter")
    return {"base": str(folder / "base"), "adapter": str(folder / "adapter")}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Score in this process instead of in actors."""

    def pool(items: list[dict[str, Any]], plan: ScoringPlan, _: EvaluateConfig) -> Iterator[pa.Table]:
        worker = ScoreRows(plan)
        yield from (worker(pa.Table.from_pylist([item])) for item in items)

    monkeypatch.setattr(stage, "_pool", pool)


Result = tuple[Outcome, dict[str, Any], list[dict[str, Any]]]


def evaluate(folder: Path, source: Any, config: EvaluateConfig, run: Path | None = None) -> Result:
    """Execute the stage; its outcome, metrics.json and the predictions."""
    store = StageStore(Location.of(folder))
    context = new_context(store, seed=3, progress=Progress(quiet=True), run=Location.of(run) if run else None)
    outcome = stage.execute(context, source, config)
    rows = [row for file in outcome.files["predictions"] for row in pq.read_table(store.folder.join(file).path).to_pylist()]
    return outcome, json.loads((folder / "metrics.json").read_text()), rows


@pytest.mark.usefixtures("here")
def test_base_and_tuned_are_scored_on_the_test_split_alone(tmp_path: Path, models: dict[str, str]) -> None:
    """Every test row has a prediction of each variant, with probabilities over the labels, and metrics that follow from them."""
    config = EvaluateConfig(labels=("positive", "negative"), adapter=models["adapter"], bootstrap=50)
    outcome, metrics, rows = evaluate(tmp_path / "out", Rows(ROWS), config)
    assert (outcome.rows_in, outcome.rows_kept, outcome.rows_dropped) == (90, 90, {})
    assert {(row["id"], row["variant"]) for row in rows} == {(f"r{i:03}", v) for i in range(90) for v in ("base", "tuned")}
    assert all(sum(dict(row["scores"]).values()) == pytest.approx(1) for row in rows)
    assert all(row["predicted"] == max(dict(row["scores"]), key=dict(row["scores"]).__getitem__) for row in rows)
    tuned = [row for row in rows if row["variant"] == "tuned"]
    assert metrics["tuned"]["accuracy"] == pytest.approx(np.mean([row["label"] == row["predicted"] for row in tuned]))
    assert metrics["difference"]["accuracy"]["value"] == pytest.approx(metrics["tuned"]["accuracy"] - metrics["base"]["accuracy"])
    assert outcome.details["difference"] == metrics["difference"]
    assert outcome.details["base_model"] == models["base"]


@pytest.mark.usefixtures("here")
def test_labels_of_several_tokens_and_few_shot_prompts(tmp_path: Path, models: dict[str, str]) -> None:
    """Nested labels of several tokens are scored, and examples before the question change the scores."""
    names = ("yes", "yes and no at once")
    rows = [conversation(i, "test" if i < 10 else "train", answer=names[i % 2]) for i in range(20)]
    config = EvaluateConfig(labels=names, base_model=models["base"], few_shot=2, bootstrap=0)
    outcome, _, found = evaluate(tmp_path / "out", Rows(rows), config)
    tails = outcome.details["scored_tokens"]
    assert tails["yes"][-1] == tails["yes and no at once"][-1] == load(EMBEDDED_MODEL).end_of_turn_id
    scores = {variant: [row["scores"] for row in found if row["variant"] == variant] for variant in ("base", "base_few_shot")}
    assert len(found) == 20
    assert scores["base"] != scores["base_few_shot"]


@pytest.mark.usefixtures("here")
def test_rows_longer_than_the_context_are_dropped_with_a_reason(tmp_path: Path, models: dict[str, str]) -> None:
    """A prompt that the model cannot hold is counted, not cut."""
    rows = [
        *ROWS[:6],
        {**ROWS[6], "id": "long", "messages": [{"role": "user", "content": "word " * 500}, ROWS[6]["messages"][1]]},
    ]
    config = EvaluateConfig(base_model=models["base"], variants=("base",), bootstrap=0)
    outcome, metrics, _ = evaluate(tmp_path / "out", Rows(rows), config)
    assert (outcome.rows_kept, outcome.rows_dropped, metrics["n"]) == (6, {"too_long": 1}, 6)


@pytest.mark.usefixtures("here")
def test_answers_that_are_texts_are_measured_by_their_loss(tmp_path: Path, models: dict[str, str]) -> None:
    """Without labels the stage compares the loss of the right answers for each token."""
    rows = [conversation(i, "test", answer=f"An answer with the number {i}.") for i in range(8)]
    _, metrics, found = evaluate(tmp_path / "out", Rows(rows), EvaluateConfig(adapter=models["adapter"], bootstrap=50))
    assert metrics["base"]["answer_loss"] == pytest.approx(np.log(49152), rel=0.05)
    assert metrics["base"]["perplexity"] == pytest.approx(np.exp(metrics["base"]["answer_loss"]))
    assert metrics["difference"]["answer_loss"]["low"] <= metrics["difference"]["answer_loss"]["high"]
    assert len(found) == 16


@pytest.mark.usefixtures("ray_session")
def test_a_users_own_file_on_two_actors(tmp_path: Path, models: dict[str, str], request: pytest.FixtureRequest) -> None:
    """A CSV of text and label gives, on two actors, the scores of one worker that reads it in another order."""
    lines = [f"a text {'very ' * (i % 5)}{i},{'spam' if i % 2 else 'ham'}\n" for i in range(90)]
    (tmp_path / "mine.csv").write_text("comment,kind\n" + "".join(lines))
    source = FileSource(InputConfig(path=str(tmp_path / "mine.csv"), text_columns=("comment",), label_column="kind"))
    config = EvaluateConfig(base_model=models["base"], bootstrap=0, workers=2)
    _, metrics, found = evaluate(tmp_path / "out", source, config)
    assert (metrics["labels"], metrics["positive_label"], len(found)) == (["ham", "spam"], "spam", 90)
    assert "tuned" not in metrics
    rows = [row for batch in source.dataset().iter_batches(batch_size=None, batch_format="pyarrow") for row in batch.to_pylist()]
    request.getfixturevalue("here")
    _, _, again = evaluate(tmp_path / "again", Rows(rows[::-1]), config)
    assert found == again


@pytest.mark.usefixtures("here")
def test_the_runs_own_adapter_is_found_and_a_new_one_noticed(tmp_path: Path, models: dict[str, str]) -> None:
    """Inside a run the adapter and its base model need not be named; when it is trained again the evaluation is out of date."""
    adapter = tmp_path / "run" / "finetune" / "adapter"
    shutil.copytree(models["adapter"], adapter)
    config = EvaluateConfig(bootstrap=0)
    outcome, metrics, _ = evaluate(tmp_path / "run" / "evaluate", Rows(ROWS[:4]), config, run=tmp_path / "run")
    assert metrics["difference"]["accuracy"]["low"] is None
    counts: dict[str, Any] = {"rows_in": 4, "rows_kept": 4, "rows_dropped": {}, "files": {}, "seconds": 1.0}
    same: dict[str, Any] = {"config": {}, "config_fingerprint": "", "input": {}}
    manifest = Manifest(stage="evaluate", details=dict(outcome.details), **counts, **same)
    assert not stage.STAGE.unfinished(manifest, config)
    (adapter / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text() + "\n")
    assert stage.STAGE.unfinished(manifest, config)
    shutil.rmtree(adapter)
    assert not stage.STAGE.unfinished(manifest, config)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("rows", "values", "says"),
    [
        (ROWS[:4], {}, "base_model is not set"),
        (ROWS[:4], {"adapter": "/nowhere"}, "holds no adapter_config.json"),
        (ROWS[100:], {"base_model": EMBEDDED_MODEL}, "the test split is empty"),
        (ROWS[:4], {"base_model": EMBEDDED_MODEL, "labels": ("positive", "neutral")}, "'negative' of 2 rows is not in"),
        (ROWS[:4], {"base_model": EMBEDDED_MODEL, "few_shot": 1}, "0 rows with label 'negative'"),
        ([{"id": "a", "score": 1}], {"base_model": EMBEDDED_MODEL}, "should hold messages, or text and label"),
        ([{"id": "a", "text": "x", "label": None}], {"base_model": EMBEDDED_MODEL}, "1 rows have no label"),
        ([conversation(1, "test", "Free text.")], {"base_model": EMBEDDED_MODEL, "few_shot": 1}, "need labels"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    tmp_path: Path, rows: list[dict[str, Any]], values: dict[str, Any], says: str
) -> None:
    """Bad input is refused before a model is loaded, and nothing is written."""
    with pytest.raises((ConfigError, DataError), match=says) as error:
        evaluate(tmp_path / "out", Rows(rows), EvaluateConfig(**values))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "metrics.json").exists()
