"""The stage under Ray Train, with a tiny model and a toy chat template."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chat.toy import GOOD, toy_tokenizer
from finetune.tiny import config, run, table, tiny_model
from tunemill.errors import ConfigError, DataError, ResumeRefused
from tunemill.finetune.config import FinetuneConfig
from tunemill.finetune.metrics import read_metrics
from tunemill.finetune.stage import STAGE
from tunemill.progress import Progress
from tunemill.stage import new_context, run_stage
from tunemill.store import Location, Manifest, StageStore
from tunemill.tables import FileSource, InputConfig

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama with the toy tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    tiny_model(folder)
    toy_tokenizer(GOOD).save_pretrained(folder)
    return str(folder)


def source(folder: Path, made: pa.Table, split: list[str] | None = None) -> FileSource:
    """Rows of a table in a file."""
    if split is not None:
        made = made.append_column("split", pa.array(split))
    folder.mkdir(exist_ok=True, parents=True)
    pq.write_table(made, folder / "rows.parquet")
    return FileSource(InputConfig(path=str(folder / "rows.parquet")))


def execute(settings: FinetuneConfig, rows_: FileSource, output: Path) -> Manifest:
    """Run the stage."""
    context = new_context(StageStore(Location.of(output)), seed=0, progress=Progress(quiet=True))
    return run_stage(STAGE, rows_, settings, context, overwrite=False)


def losses(output: Path) -> list[float]:
    """Training losses in metrics.jsonl, each step once."""
    records = [r for r in read_metrics(Location.of(output / "metrics.jsonl")) if "loss" in r]
    assert [r["step"] for r in records] == list(range(1, len(records) + 1))
    return [r["loss"] for r in records]


def test_a_killed_worker_and_two_preemptions_change_nothing(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose worker is killed once and preempted twice ends with the curve and the counts of an undisturbed one.

    Preemptions do not count as failures: only one is allowed.
    """
    settings = config(model, save_steps=4, epochs=4, max_failures=1)
    expected = run(settings, tmp_path / "alone")
    made = pa.concat_tables([table(21), with_ids(table(5, seed=1), "v")])
    output = tmp_path / "run"
    monkeypatch.setattr("tunemill.finetune.ray_loop.ray_worker", disturbed(tmp_path))
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    manifest = execute(settings, source(tmp_path, made, ["train"] * 21 + ["validation"] * 5), output)
    assert sorted(file.name for file in tmp_path.glob("attempt-*")) == [
        "attempt-1-from-0", "attempt-2-from-4", "attempt-3-from-7", "attempt-4-from-10",
    ]  # fmt: skip
    np.testing.assert_allclose(losses(output), expected.losses, atol=1e-5)
    assert manifest.rows_in == manifest.rows_kept == 26
    assert manifest.details["steps"] == 12
    assert manifest.details["trained_steps"] == 2
    speed = manifest.details["speed"]
    assert (speed["restarts"], speed["steps"], speed["tokens"]) == (3, 12, expected.outcome.speed["tokens"])
    assert speed["data_wait_share"] <= 0.02
    names = {file.name for file in (output / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} <= names
    assert "train | 21" in (output / "adapter" / "README.md").read_text()
    assert any((output / "tensorboard").iterdir())


def disturbed(folder: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The worker's function with four fates, one for each attempt; each leaves a file that says where it began.

    The first kills itself when it has logged step 5 and Ray Train knows of its checkpoint. The second and third are told
    of a preemption when they have logged steps 6 and 9, as Ray Train's watcher of draining nodes tells them; two steps
    later, when Ray Train knows of the checkpoint that this brought, the time is up and they wait to be ended. The fourth
    is left alone.
    """
    told_at = {2: 6, 3: 9}

    def worker(job: dict[str, Any]) -> dict[str, Any]:
        import ray
        from ray.train.v2._internal.execution.context import get_train_context
        from ray.train.v2.api.preemption import PreemptionInfo

        from tunemill.finetune import metrics, ray_loop

        attempt = len(list(folder.glob("attempt-*"))) + 1
        add, fetch = metrics.MetricsFile.add, ray_loop._fetch_checkpoint

        def fetched(work: str) -> str | None:
            checkpoint = fetch(work)
            (folder / f"attempt-{attempt}-from-{(checkpoint or '0').rsplit('-', 1)[-1]}").touch()
            return checkpoint

        def wait_until_known(step: int) -> None:
            where = Path(job["metrics"].path).parent / "checkpoints"
            name = f'"checkpoint-{step}"'
            while not any(name in file.read_text() for file in where.glob("run-*/checkpoint_manager_snapshot.json")):
                time.sleep(0.01)

        def preempt(left_s: float) -> None:
            node = ray.get_runtime_context().get_node_id()
            end_ms = round((time.time() + left_s) * 1000)
            info = PreemptionInfo(deadline_ms=end_ms, preempted_node_to_ranks={node: [0]})
            get_train_context().preemption_context.preemption_info = info

        def added(self: metrics.MetricsFile, record: dict[str, Any]) -> None:
            add(self, record)
            step, told = record["step"], told_at.get(attempt)
            if attempt == 1 and step == 5:
                wait_until_known(4)
                os.kill(os.getpid(), signal.SIGKILL)
            if told is not None and step == told:
                preempt(left_s=3600)
            if told is not None and step == told + 2:
                wait_until_known(told + 1)
                preempt(left_s=0)
                threading.Event().wait()

        metrics.MetricsFile.add, ray_loop._fetch_checkpoint = added, fetched
        return ray_loop.ray_worker(job)

    return worker


def with_ids(made: pa.Table, prefix: str) -> pa.Table:
    """The table with other ids."""
    return made.set_column(0, "id", pa.array([f"{prefix}{i}" for i in range(made.num_rows)]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 64, "batch_size": 64}, r"workers is 64 .* cluster has 2 CPUs"),
        ({"gpus_per_worker": 1}, r"cluster has 0 GPUs"),
        ({"base_model": "/nowhere/model"}, r"/nowhere/model"),
    ],
    ids=["workers", "gpus", "model"],
)
def test_what_cannot_work_is_said_before_training(changes: dict[str, Any], message: str, model: str, tmp_path: Path) -> None:
    """More workers or GPUs than there are, or a model that is not there: one line."""
    with pytest.raises(ConfigError, match=message) as caught:
        execute(config(model, **changes), source(tmp_path, table(4)), tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_rows_that_teach_nothing_are_refused_or_counted(model: str, tmp_path: Path) -> None:
    """No trained token at all is an error; single rows without one are dropped by name."""
    made = table(4)
    silent = made.set_column(
        2, "loss_weights", pa.array([[0.0] * len(r.as_py()) for r in made["input_ids"]], pa.list_(pa.float32()))
    )
    with pytest.raises(DataError, match="none of the 4 rows has a token with a loss weight"):
        execute(config(model), source(tmp_path / "a", silent), tmp_path / "run")
    mixed = pa.concat_tables([table(8, seed=2), with_ids(silent, "s")])
    manifest = execute(config(model, max_steps=1), source(tmp_path / "b", mixed), tmp_path / "mixed")
    assert manifest.rows_dropped == {"no_trainable_token": 4}
    assert manifest.rows_kept == 8


def test_rows_of_another_tokenizer_are_refused(model: str, tmp_path: Path) -> None:
    """A token id beyond the model's vocabulary tells which tokenizer to use."""
    foreign = pa.table({"id": ["a"], "input_ids": [[1, 999]], "loss_weights": [[0.0, 1.0]]})
    with pytest.raises(DataError, match="token id 999, but .* knows 264 tokens"):
        execute(config(model), source(tmp_path, foreign), tmp_path / "run")


def test_checkpoints_of_another_configuration_are_refused(model: str, tmp_path: Path) -> None:
    """An unfinished run with another learning rate is not continued, and the difference is shown."""
    made = source(tmp_path, table(8))
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    from tunemill.config import essential

    other = {"config": essential(config(model, learning_rate=0.5)), "input": made.describe["fingerprint"]}
    (folder / "run-other.json").write_text(json.dumps(other))
    with pytest.raises(ResumeRefused, match=r"learning_rate: 0.5 -> 0.01"):
        execute(config(model), made, tmp_path / "run")


def test_missing_columns_are_named(model: str, tmp_path: Path) -> None:
    """Rows that the template stage has not seen are refused."""
    with pytest.raises(DataError, match="no column 'input_ids'"):
        execute(config(model), source(tmp_path, pa.table({"id": ["a"], "text": ["b"]})), tmp_path / "run")
