"""The export: what the split stage kept, as ``datasets`` reads it, with a card that hides what is private."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tunemill.errors import ConfigError, DataError
from tunemill.export.config import ExportConfig
from tunemill.export.dataset import export
from tunemill.store import Location, Manifest, StageStore

CONFIG: dict[str, Any] = {
    "run": {"output": "/home/someone/runs/toy", "seed": 7},
    "generate": {
        "template": "Write a {sentiment} sentence.",
        "label": "sentiment",
        "variables": {"sentiment": ["good", "bad"]},
        "models": [
            {"name": "m", "provider": "gemini", "model": "gemini-2.5-flash", "base_url": "http://inside:8000", "account": "acme"}
        ],
    },
    "dedup": {"threshold": 0.95},
}


def make_run(folder: Path, splits: list[str], labels: list[str | None]) -> Location:
    """A run whose split stage kept two files of rows."""
    (folder / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    rows = [
        {"id": f"{i}", "text": f"טקסט {i} 😀", "label": label, "split": split, "embedding": [0.0, 1.0]}
        for i, (split, label) in enumerate(zip(splits, labels, strict=True))
    ]
    names = []
    for part in range(2):
        name = f"data/{part}.parquet"
        (folder / "split" / "data").mkdir(parents=True, exist_ok=True)
        schema = pa.schema(
            [
                ("id", pa.string()),
                ("text", pa.string()),
                ("label", pa.string()),
                ("split", pa.string()),
                ("embedding", pa.list_(pa.float32(), 2)),
            ]
        )
        pq.write_table(pa.Table.from_pylist(rows[part::2], schema=schema), folder / "split" / name)
        names.append(name)
    manifest = Manifest(
        stage="split", config={}, config_fingerprint="c", input={"fingerprint": "i"}, rows_in=len(rows), rows_kept=len(rows),
        rows_dropped={}, files={"data": names}, seconds=0.1,
    )  # fmt: skip
    StageStore(Location.of(folder / "split")).commit(manifest)
    return Location.of(folder)


def test_rows_come_back_with_class_labels(tmp_path: Path) -> None:
    """Every row of every split is there, the label is a ClassLabel (a missing one stays missing), vectors are not."""
    from datasets import ClassLabel, load_from_disk

    run = make_run(tmp_path, ["train", "train", "test", "validation", "train"], ["good", "bad", "good", "bad", None])
    done = export(run, ExportConfig())
    found = load_from_disk(done.folder.path)
    assert {name: sorted(split["id"]) for name, split in found.items()} == {
        "train": ["0", "1", "4"],
        "validation": ["3"],
        "test": ["2"],
    }
    assert found["train"].features["label"] == ClassLabel(names=["bad", "good"])
    assert {row["id"]: row["label"] for row in found["train"]} == {"0": 1, "1": 0, "4": None}
    assert found["test"]["text"][0] == "טקסט 2 😀"
    assert found["train"].column_names == ["id", "text", "label"]
    assert done.rows == {"train": 3, "validation": 1, "test": 1}


def test_the_card_states_the_recipe_and_no_private_names(tmp_path: Path) -> None:
    """Models, counts, licences to check and the seed stand in the card; hosts, accounts and folders do not."""
    run = make_run(tmp_path, ["train", "test"], ["good", "bad"])
    card = (Path(export(run, ExportConfig()).folder.path) / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["task_categories"] == ["text-classification"]
    assert front["size_categories"] == ["n<1K"]
    for shown in (
        "gemini-2.5-flash",
        "Gemini API additional terms",
        "| train | 1 | 0 | 1 |",
        "| split | 2 | 2 | none |",
        "seed: 7",
        "threshold: 0.95",
    ):
        assert shown in card
    for hidden in ("inside:8000", "acme", "/home/someone"):
        assert hidden not in card


def test_a_run_without_labels_exports_plain_rows(tmp_path: Path) -> None:
    """Without a single label there is no class and no classification task."""
    from datasets import load_from_disk

    run = make_run(tmp_path, ["train", "train"], [None, None])
    done = export(run, ExportConfig(columns=("id", "text"), output=str(tmp_path / "out")))
    assert load_from_disk(done.folder.path)["train"].column_names == ["id", "text"]
    assert "text-classification" not in (tmp_path / "out" / "README.md").read_text()


def test_an_existing_export_is_replaced_only_when_told(tmp_path: Path) -> None:
    """The second export is refused in one line; with ``overwrite`` it replaces the first."""
    run = make_run(tmp_path, ["train", "test"], ["good", "bad"])
    export(run, ExportConfig())
    with pytest.raises(ConfigError, match="already there; add --overwrite"):
        export(run, ExportConfig())
    assert export(run, ExportConfig(), overwrite=True).rows == {"train": 1, "test": 1}


def test_bad_input_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unfinished run, an unknown column and a missing token are named before anything is written."""
    with pytest.raises(DataError, match="the split stage has not finished"):
        export(Location.of(tmp_path / "nowhere"), ExportConfig())
    run = make_run(tmp_path, ["train"], ["good"])
    with pytest.raises(DataError, match="no column 'txt' to export"):
        export(run, ExportConfig(columns=("txt",)))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match="set HF_TOKEN or run: hf auth login"):
        export(run, ExportConfig(push_to_hub="me/toy"))
    assert not (tmp_path / "export").exists()


def test_the_hub_gets_the_splits_and_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a token the DatasetDict is pushed privately, and the card keeps the hub's own metadata."""
    from datasets import DatasetDict
    from huggingface_hub import DatasetCard

    pushed: dict[str, Any] = {}
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "token")
    monkeypatch.setattr(
        DatasetDict, "push_to_hub", lambda self, name, private: pushed.update(rows=dict(self.num_rows), private=private)
    )
    monkeypatch.setattr(DatasetCard, "load", lambda name: DatasetCard("---\nconfigs:\n- config_name: default\n---\nempty"))
    monkeypatch.setattr(DatasetCard, "push_to_hub", lambda self, name: pushed.update(card=str(self), name=name))
    done = export(make_run(tmp_path, ["train", "test"], ["good", "bad"]), ExportConfig(push_to_hub="me/toy"))
    assert done.url == "https://huggingface.co/datasets/me/toy"
    assert (pushed["rows"], pushed["private"], pushed["name"]) == ({"train": 1, "test": 1}, True, "me/toy")
    assert "config_name: default" in pushed["card"]
    assert "Licences to check" in pushed["card"]
    assert "# toy" in pushed["card"]
