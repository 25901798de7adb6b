"""Embedding beside ``SentenceTransformer.encode`` with its defaults, same texts, one process, no Ray.

    python benchmarks/embed.py --data sgd_sharegpt.jsonl.gz --reviews fine_food_reviews_1k.csv
    python benchmarks/embed.py --data sgd_sharegpt.jsonl.gz --texts 200000 --device cuda

Ours and the peer take turns; each line gives the median of the rounds (least - most) in texts per second of
wall time, the ratio, the ratio of processor seconds (which other processes disturb less) and the least cosine
to the peer's fp32 vectors. On a GPU also the share of the time that the bare forward passes take.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from tunemill.embed.batches import Batch
from tunemill.embed.config import EmbedConfig
from tunemill.embed.embedder import Embedder
from tunemill.embed.models import find

LONG_REVIEWS = (2, 4)


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="ShareGPT JSONL (.gz): its turns are the utterances")
    parser.add_argument("--reviews", type=Path, help="CSV with Summary and Text: alone and joined, the longer documents")
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--texts", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="torch threads of both (default: torch's)")
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    ours = Recording(EmbedConfig(model=arguments.model, device=arguments.device, precision=arguments.precision))
    peer = SentenceTransformer(find(EmbedConfig(model=arguments.model)).path, device=arguments.device)
    print(f"{time.strftime('%Y-%m-%d', time.gmtime())}, {hardware(arguments.device)}, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads, {arguments.model}, {arguments.rounds} rounds")  # fmt: skip
    print("| texts | n | tokens each | ours, texts/s | peer, texts/s | ratio | ratio of CPU seconds | least cosine |")
    print("|---|---|---|---|---|---|---|---|")
    for name, texts in corpora(arguments).items():
        print(line(name, texts, ours, peer, arguments.rounds), flush=True)
        if arguments.device == "cuda":
            print(f"| {name}: {ours.forward_share(texts):.0%} of the time is forward passes | | | | | | | |", flush=True)
    print(f"\ndata type {ours.precision}, check {ours.facts['precision_check']}")


def corpora(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Real texts: distinct utterances, utterances as they come (with repeats), longer documents."""
    rng = random.Random(0)
    with gzip.open(arguments.data, "rt", encoding="utf-8") as lines:
        turns = [turn["value"] for line in lines for turn in json.loads(line)["conversations"]]
    distinct = list(dict.fromkeys(turns))
    found = {
        "distinct utterances": rng.sample(distinct, min(arguments.texts, len(distinct))),
        "utterances with repeats": rng.sample(turns, min(arguments.texts, len(turns))),
    }
    if arguments.reviews:
        with arguments.reviews.open(encoding="utf-8", newline="") as file:
            reviews = [f"{row['Summary']}. {row['Text']}" for row in csv.DictReader(file)]
        n = max(arguments.texts // 12, 1)
        found["reviews and joined reviews"] = [
            " ".join(rng.sample(reviews, rng.randint(*LONG_REVIEWS) if i % 2 else 1)) for i in range(n)
        ]
    return found


class Recording(Embedder):
    """An embedder that can keep the features it feeds, to time the bare forward passes."""

    kept: list[dict[str, Any]] | None = None

    def _forward(self, batch: Batch, items: dict[int, Any]) -> Any:
        if self.kept is not None:
            features = self._reader.pad([items[row] for row in batch.rows], batch.width)
            self.kept.append({k: v.to(self.device) if hasattr(v, "to") else v for k, v in features.items()})
        return super()._forward(batch, items)

    def forward_share(self, texts: Sequence[str]) -> float:
        """Seconds of the forward passes alone over seconds of :meth:`encode`."""
        self.kept = []
        self.encode(texts)
        batches, self.kept = self.kept, None
        total = min(seconds(lambda: self.encode(texts))[1] for _ in range(3))
        return min(seconds(lambda: self._all(batches))[1] for _ in range(3)) / total

    def _all(self, batches: list[dict[str, Any]]) -> None:
        with torch.inference_mode():
            for features in batches:
                self._model(dict(features))["sentence_embedding"]
            if self.device == "cuda":
                torch.cuda.synchronize()


def line(name: str, texts: list[str], ours: Embedder, peer: SentenceTransformer, rounds: int) -> str:
    """One row of the table; the first round warms up and is not counted."""
    wall: dict[str, list[float]] = {"ours": [], "peer": []}
    processor: dict[str, list[float]] = {"ours": [], "peer": []}
    least = 1.0
    for turn in range(rounds + 1):
        reference, peer_s, peer_cpu_s = seconds(lambda: peer.encode(texts))
        found, our_s, our_cpu_s = seconds(lambda: ours.encode(texts))
        reference = reference / np.linalg.norm(reference, axis=1, keepdims=True)
        least = min(least, float(np.einsum("nd,nd->n", reference, found).min()))
        if turn:
            wall["ours"].append(our_s)
            wall["peer"].append(peer_s)
            processor["ours"].append(our_cpu_s)
            processor["peer"].append(peer_cpu_s)
    tokens = float(ours.embed(texts[:500]).n_tokens.mean())
    ratio, cpu_ratio = (statistics.median(taken["peer"]) / statistics.median(taken["ours"]) for taken in (wall, processor))
    speeds = [spread([len(texts) / s for s in wall[who]]) for who in ("ours", "peer")]
    cells = [name, f"{len(texts):,}", f"{tokens:.0f}", *speeds, f"{ratio:.2f}", f"{cpu_ratio:.2f}", f"{least:.5f}"]
    return f"| {' | '.join(cells)} |"


def spread(values: list[float]) -> str:
    """Median (least - most)."""
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} - {max(values):,.0f})"


def seconds(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, wall seconds and processor seconds of all threads."""
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - processor


def hardware(device: str) -> str:
    """What it ran on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    names = [row.split(":")[1].strip() for row in Path("/proc/cpuinfo").read_text().splitlines() if row.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
