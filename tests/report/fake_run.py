"""A made-up run with the files, columns and details of a real one, in several scripts and with hostile texts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tunemill.store import Location, Manifest, StageStore

__all__ = ["HOSTILE", "write_run"]

HOSTILE = "<script>alert('own')</script> & \"quotes\" </section>"
LABELS = ("positive", "negative")
MODELS = ("smollm2-warm", "smollm2-cool")

_STEMS = (
    "The old bridge at {place} {verb} everyone who crossed it on {day}.",
    "Our {day} market in {place} {verb} the whole street.",
    "A late train from {place} {verb} the passengers on {day}.",
    "השוק הישן ב{place} {verb} את כולם ביום {day}.",
    "الحديقة في {place} {verb} الزوار يوم {day}.",
    "{place}의 도서관은 {day}에 모두를 {verb} 했다.",
    "{place}的老图书馆在{day}{verb}所有人。",
    "¡El concierto de {place} {verb} a todos el {day}! 🎻",
)
_PLACES = ("Haifa", "Busan", "Sevilla", "Leipzig", "Cusco", "Tromsø", "Nablus", "Chengdu")
_DAYS = ("Monday", "Tuesday", "Friday", "Sunday")
_VERBS = {"positive": ("delighted", "moved", "cheered"), "negative": ("bored", "annoyed", "wearied")}
_VERSIONS = {"tunemill": "0.1.0", "ray": "2.60.0", "numpy": "2.3.1", "torch": "2.13.0", "transformers": "5.23.0"}


def write_run(folder: Path, *, rows: int = 240, until: str = "evaluate") -> Location:
    """Write a run of ``rows`` answers up to the stage ``until``; returns its location."""
    run = Location.of(folder)
    made = _Maker(run, rows)
    for name in ("generate", "clean", "embed", "dedup", "split", "template", "finetune", "evaluate"):
        getattr(made, name)()
        if name == until:
            break
    run.join("run.yaml").write_text(yaml.safe_dump(_config(), sort_keys=False, allow_unicode=True))
    return run


def _config() -> dict[str, Any]:
    return {
        "run": {"output": "runs/fake", "seed": 0},
        "generate": {
            "rows": 120,
            "template": "Write one sentence with a {sentiment} sentiment about: {topics}.",
            "variables": {"sentiment": list(LABELS), "topics": ["bridges", "markets", HOSTILE]},
            "label": "sentiment",
            "models": [
                {
                    "name": name,
                    "provider": "openai",
                    "model": name,
                    "price": {"input": 0.1, "output": 0.4},
                    "limits": {"rpm": 600},
                }
                for name in MODELS
            ],
        },
        "clean": {"method": "padding_clusters"},
        "embed": {"model": "all-MiniLM-L6-v2"},
        "dedup": {"threshold": 0.95, "text_columns": ["text"]},
        "split": {"test_fraction": 0.2},
        "template": {"task": "classify", "max_length": 64},
        "finetune": {"base_model": "embedded/smollm2-135m", "learning_rate": 5e-4, "lora": {"r": 16, "alpha": 32}},
        "evaluate": {"labels": list(LABELS), "note": HOSTILE},
    }


class _Maker:
    def __init__(self, run: Location, rows: int) -> None:
        self.run = run
        self.random = np.random.default_rng(0)
        self.rows = [self._row(i) for i in range(rows)]

    def _row(self, i: int) -> dict[str, Any]:
        label = LABELS[i % 2]
        pick = self.random.integers
        text = _STEMS[i % len(_STEMS)].format(
            place=_PLACES[pick(len(_PLACES))], verb=_VERBS[label][pick(3)], day=_DAYS[pick(len(_DAYS))]
        )
        model = MODELS[(i // 2) % 2]
        return {
            "id": f"{i:06x}",
            "request_id": f"q{i:05}",
            "prompt_id": f"p{i // 2:05}",
            "provider": "embedded",
            "model": model,
            "prompt": f"Write one sentence with a {label} sentiment about: bridges.",
            "label": label,
            "text": HOSTILE if i == 4 else text,
            "finish_reason": "stop",
            "input_tokens": 31,
            "output_tokens": 22,
            "cost_usd": 0.0004,
            "latency_s": float(self.random.lognormal(-0.4 if model == MODELS[0] else 0.1, 0.35)),
            "attempts": 1,
        }

    def _commit(self, stage: str, kept: list[dict[str, Any]] | None, dropped: list[dict[str, Any]], **details: Any) -> None:
        store = StageStore(self.run.join(stage))
        files: dict[str, list[str]] = {"data": [], "dropped": []}
        for kind, rows in (("data", kept), ("dropped", dropped)):
            if rows:
                files[kind].append(self._table(stage, kind, pa.Table.from_pylist(rows)))
        files |= details.pop("files", {})
        reasons: dict[str, int] = {}
        for row in dropped:
            reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
        count = details.pop("count", len(kept or []))
        manifest = Manifest(
            stage=stage,
            config=_config()[stage],
            config_fingerprint="c0ffee",
            input={"fingerprint": "f00d"},
            rows_in=count + len(dropped),
            rows_kept=count,
            rows_dropped=reasons,
            files=files,
            seconds=12.5,
            details=details,
        )
        committed = dataclasses.replace(manifest, created_at="2026-11-20T18:30:00Z", versions=_VERSIONS)
        store.folder.join("manifest.json").write_text(json.dumps(dataclasses.asdict(committed), ensure_ascii=False))

    def _table(self, stage: str, kind: str, table: pa.Table) -> str:
        name = f"{kind}/attempt-table.parquet"
        target = self.run.join(stage, name)
        target.fs.create_dir(self.run.join(stage, kind).path, recursive=True)
        pq.write_table(table, target.path)
        return name

    def _drop(self, share: float, reason: str, **more: Any) -> list[dict[str, Any]]:
        gone = [row for row in self.rows if self.random.random() < share and row["text"] != HOSTILE]
        self.rows = [row for row in self.rows if row not in gone]
        return [{**row, "reason": reason, **more} for row in gone]

    def generate(self) -> None:
        dropped = self._drop(0.02, "gave_up", status=429, error="too many requests")
        models = {
            name: {
                "calls": sum(row["model"] == name for row in [*self.rows, *dropped]),
                "kept": sum(row["model"] == name for row in self.rows),
                "dropped": {"gave_up": sum(row["model"] == name for row in dropped)},
                "input_tokens": 3720,
                "output_tokens": 2640,
                "cost_usd": 0.048,
                "latency_p50_s": 0.71,
            }
            for name in MODELS
        }
        plan = {"prompts": 120, "samples": 1, "models": 2, "combinations": 700, "seed": 0, "fingerprint": "abc"}
        self._commit(
            "generate", self.rows, dropped, models=models, plan=plan, budget_usd=5.0, maybe_paid_twice=[{"request_id": "q00017"}]
        )

    def clean(self) -> None:
        dropped = self._drop(0.06, "padding") + self._drop(0.02, "keyword")
        count = 2 * len(self.rows)
        cluster = self.random.choice([0, 0, 0, 1, 2], count)
        centres = np.array([[0.0, 0.0], [0.7, 0.3], [0.2, -0.7]])
        points = centres[cluster] + self.random.normal(0, 0.13, (count, 2))
        segments = pa.table(
            {
                "id": [f"{i:06x}" for i in range(count)],
                "segment": ["Sure, here is a sentence."] * count,
                "cluster": cluster,
                "x": points[:, 0],
                "y": points[:, 1],
                "target": cluster == 0,
                "kept": cluster == 0,
            }
        )
        clusters = [
            {"cluster": 0, "size": 260, "answers": 225, "target": True, "samples": [row["text"] for row in self.rows[:4]]},
            {"cluster": 1, "size": 90, "answers": 80, "target": False, "samples": ["Let me know if you need more!", HOSTILE]},
            {"cluster": 2, "size": 60, "answers": 60, "target": False, "samples": ["This sentence conveys a positive mood."]},
        ]
        self._commit(
            "clean",
            self.rows,
            dropped,
            clusters=clusters,
            explained_variance=[0.31, 0.18],
            files={"segments": [self._table("clean", "segments", segments)]},
        )

    def embed(self) -> None:
        self._commit("embed", self.rows, [], truncated=0)

    def dedup(self) -> None:
        for row in self.rows:
            row["group"] = row["id"]
        survivor = self.rows[0]
        dropped = self._drop(0.12, "near_duplicate", kept_id=survivor["id"])
        self.rows = self.rows if survivor in self.rows else [survivor, *self.rows]
        dropped = [
            {**row, "similarity": 0.95 + 0.049 * i / len(dropped)} for i, row in enumerate(dropped) if row["id"] != survivor["id"]
        ]
        edges = np.linspace(0.85, 1.0, 21)
        counts = [int(80 * np.exp(-(((edge - 0.88) * 22) ** 2))) + 6 for edge in edges[:-1]]
        texts = [{"id": row["id"], "text": row["text"], "kept": i == 0} for i, row in enumerate(self.rows[:4])]
        pairs = [
            {"a": "The market in Busan cheered us.", "b": "Our market in Busan cheered us all.", "similarity": 0.9573},
            {"a": "השוק הישן שימח את כולם.", "b": "השוק הישן שימח את כל העיר.", "similarity": 0.9511},
            {"a": "老图书馆让所有人开心。", "b": "旧图书馆让人人开心。", "similarity": 0.9487},
            {"a": HOSTILE, "b": "A calm evening.", "similarity": 0.9402},
        ]
        self._commit(
            "dedup",
            self.rows,
            dropped,
            threshold=0.95,
            pair_floor=0.85,
            pairs=sum(counts),
            exact_duplicates=0,
            near_duplicates=len(dropped),
            rules={"greedy": {"removed": len(dropped), "orphans": 0}, "components": {"removed": len(dropped) + 9, "orphans": 7}},
            engine={"cells": 16, "sketch_width": 64, "mode": "exact", "nested": {"a": 1}},
            groups={"1": 180, "2": 11, "3": 4, "6": 1},
            largest_groups=[
                {"group": "g", "size": 6, "kept": 1, "texts": texts},
                {"group": "h", "size": 3, "kept": 2, "texts": texts[:3]},
            ],
            near_threshold=pairs,
            similarity_histogram={"edges": edges.tolist(), "counts": counts},
        )

    def split(self) -> None:
        for i, row in enumerate(self.rows):
            row["split"] = "test" if i % 5 == 0 else "validation" if i % 5 == 1 else "train"
        self._commit("split", self.rows, [], rows={}, grouped_by="group")

    def template(self) -> None:
        dropped = [
            {"id": row["id"], "reason": "too_long", "split": row["split"], "label": row["label"]}
            for row in self._drop(0.02, "too_long")
        ]
        prompt = self.random.integers(18, 58, len(self.rows))
        lengths = pa.table(
            {
                "id": [row["id"] for row in self.rows],
                "prompt_tokens": prompt,
                "answer_tokens": [2] * len(prompt),
                "n_tokens": prompt + 2,
                "kept": [True] * len(prompt),
            }
        )
        for row in self.rows:
            turns = [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["label"]}]
            row |= {"messages": turns, "n_tokens": 30}
        kept = [{key: row[key] for key in ("id", "split", "label", "text", "messages", "n_tokens")} for row in self.rows]
        parts = [
            {"text": f"<|im_start|>user\n{self.rows[3]['text']}<|im_end|>\n<|im_start|>assistant\n", "trained": False},
            {"text": "negative<|im_end|>", "trained": True},
            {"text": "\n", "trained": False},
        ]
        proof = [
            {"name": name, "passed": True, "detail": "76 conversations"}
            for name in ("bos_once", "end_of_turn_trained", "system_text")
        ]
        self._commit(
            "template",
            kept,
            dropped,
            proof=proof,
            tokenizer={"source": "embedded/smollm2-135m", "family": "chatml", "template_hash": "5ab1"},
            max_length=64,
            truncated_rows=0,
            tokens={
                "prompt_tokens": int(prompt.sum()),
                "answer_tokens": 2 * len(prompt),
                "n_tokens": int(prompt.sum()) + 2 * len(prompt),
            },
            samples=[{"id": "x", "parts": parts}],
            files={"lengths": [self._table("template", "lengths", lengths)]},
        )

    def finetune(self) -> None:
        lines = []
        for step in range(1, 81):
            line = {
                "step": step,
                "epoch": step / 40,
                "loss": 0.2 + 2.0 * float(np.exp(-step / 15)) + float(self.random.normal(0, 0.05)),
            }
            line |= {"learning_rate": 5e-4 * min(step / 8, 1 - (step - 8) / 80), "tokens_per_s": 270.0}
            lines.append(line | ({"eval_loss": 0.25 + 2.0 * float(np.exp(-step / 15))} if step % 20 == 0 else {}))
        text = "\n".join(json.dumps(line) for line in lines) + '\n{"step": 81, "lo'
        self.run.join("finetune", "metrics.jsonl").write_text(text)
        speed = {
            "tokens_per_s": 271.3,
            "padding_share": 0.031,
            "share_of_gemm_peak": 0.41,
            "data_wait_share": 0.002,
            "peak_memory_bytes": 2_100_000_000,
            "seconds": {"training": 96.4, "packing_proof": 1.2},
        }
        losses = [[line["step"], line["loss"]] for line in lines]
        facts = {
            "base_model": "embedded/smollm2-135m",
            "steps": 80,
            "kept_step": 80,
            "precision": "bf16",
            "trainable_weights": 4_884_480,
        }
        self._commit("finetune", None, [], count=150, speed=speed, losses=losses, validation_losses=[], **facts)

    def evaluate(self) -> None:
        from tunemill.evaluate.labels import LabelSet
        from tunemill.evaluate.prompts import Row
        from tunemill.evaluate.results import label_results

        test = [row for row in self.rows if row["split"] == "test"]
        rows = [Row(id=row["id"], messages=tuple(row["messages"]), label=row["label"]) for row in test]
        gold = np.array([LABELS.index(row.answer) for row in rows])
        scores = {}
        for variant, skill in (("base", 0.2), ("tuned", 1.6)):
            lean = self.random.normal(0, 1, len(rows)) + skill * (1 - 2 * gold)
            scores[variant] = np.stack([1 / (1 + np.exp(-lean)), 1 / (1 + np.exp(lean))], axis=1)
        table, metrics = label_results(rows, scores, LabelSet(names=LABELS, positive=0), resamples=200, seed=0)
        self._commit(
            "evaluate",
            None,
            [],
            count=len(rows),
            files={"predictions": [self._table("evaluate", "predictions", table)]},
            **metrics,
        )
