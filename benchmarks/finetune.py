"""LoRA fine-tuning beside the plain Hugging Face Trainer with dynamic padding: same rows, same steps, no Ray.

    python benchmarks/finetune.py --data sgd_sharegpt.jsonl.gz                      # SmolLM2-135M on the CPU
    python benchmarks/finetune.py --device cuda --shape mistral-7b --length 2048    # random weights of the true shape

Ours and the peer take turns on the same batches. Each line gives real tokens per second of wall time and of processor
time (which other processes disturb less), the ratio to the peer, the ceiling (padded tokens / real tokens of the
peer: what leaving out all padding would give if the rest were equal), and the largest difference of the losses.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from tunemill.config import build
from tunemill.embedded import resolve_model
from tunemill.finetune.config import FinetuneConfig
from tunemill.finetune.model import choose_precision
from tunemill.finetune.rows import TokenRows
from tunemill.finetune.trainer import Hooks
from tunemill.finetune.worker import plan_of, train

SHAPES = {
    "mistral-7b": {
        "vocab_size": 32768, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 32768, "sliding_window": None, "rope_theta": 1e6,
    },
    "tiny": {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2},
}  # fmt: skip


COLUMNS = (
    "batch", "way", "tokens/s", "tokens/CPU s", "ratio", "ratio of CPU seconds", "ceiling", "share of ceiling", "loss apart",
    "of GEMM peak", "data wait", "peak memory",
)  # fmt: skip


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="ShareGPT JSONL (.gz) of real dialogues; without it rows are random tokens")
    parser.add_argument("--model", default="embedded/smollm2-135m")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights of this shape in place of --model")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--length", type=int, default=1024, help="longest row in tokens")
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--steps", type=int, default=2, help="measured steps of each round, after one that is not")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--ways", nargs="+", default=["packed", "bucketed", "peer"], choices=["packed", "bucketed", "peer", "trl"]
    )
    parser.add_argument("--micro-tokens", type=int)
    parser.add_argument("--peer-rows", type=int, help="rows in one forward pass of the peers (a divisor of --batch); null is all")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        path = random_model(arguments.shape, folder) if arguments.shape else resolve_model(arguments.model)
        day, precision = time.strftime("%Y-%m-%d", time.gmtime()), choose_precision("auto", device)
        print(f"{day}, {hardware(device)}, torch {torch.__version__}, {arguments.threads} threads")
        print(f"{arguments.shape or arguments.model}, {precision}, LoRA r=16 on all linear layers")
        print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
        for batch in arguments.batch:
            compare(arguments, path, device, batch, Path(folder))


def compare(arguments: argparse.Namespace, path: str, device: torch.device, batch: int, folder: Path) -> None:
    """One block of the table: every way on the same batches, in turns."""
    steps = arguments.steps + 1
    rows = read_rows(arguments, batch * steps)
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in arguments.ways}
    for _ in range(arguments.rounds):
        for way in arguments.ways:
            free_memory(device)
            run, limit = (ours, arguments.micro_tokens) if way in ("packed", "bucketed") else (peer, arguments.peer_rows)
            found[way].append(run(way, path, rows, batch=batch, steps=steps, device=device, folder=folder, limit=limit))
    for way, runs in found.items():
        print(line(way, runs, found.get("peer"), batch), flush=True)


def free_memory(device: torch.device) -> None:
    """Models of the last run stand in reference cycles; two of 7B beside each other leave too little for activations."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def line(way: str, runs: Sequence[dict[str, Any]], peers: Sequence[dict[str, Any]] | None, batch: int) -> str:
    """One row of the table: medians over the rounds; ratios are of the two runs of a round, with their least and largest."""
    cells = [str(batch), way, *(f"{statistics.median(rate(run, clock) for run in runs):,.0f}" for clock in ("wall_s", "cpu_s"))]
    if peers:
        ceiling = peers[0]["padded"] / peers[0]["tokens"]
        ratios = {
            clock: [rate(run, clock) / rate(other, clock) for run, other in zip(runs, peers, strict=True)]
            for clock in ("wall_s", "cpu_s")
        }
        # TRL makes batches of its own, so only the peer's losses are those of the same rows.
        same = way != "trl"
        apart = max(abs(a - b) for run in runs for a, b in zip(run["losses"], peers[0]["losses"], strict=False)) if same else None
        cells += [spread(ratios["wall_s"]), spread(ratios["cpu_s"]), f"{ceiling:.2f}"]
        cells += [f"{statistics.median(ratios['wall_s']) / ceiling:.2f}", "-" if apart is None else f"{apart:.4f}"]
    else:
        cells += ["-"] * 5
    share, wait, memory = (runs[-1].get(name) for name in ("peak_share", "wait", "memory"))
    cells += [f"{share:.0%}" if share else "-", f"{wait:.2%}" if wait is not None else "-"]
    return f"| {' | '.join([*cells, f'{memory / 2**30:.1f} GiB' if memory else '-'])} |"


def rate(run: dict[str, Any], clock: str) -> float:
    """Real tokens per second of wall or processor time."""
    return float(run["tokens"] / run[clock])


def spread(values: Sequence[float]) -> str:
    """The median, and the least and the largest where there are several."""
    median = f"{statistics.median(values):.2f}"
    return median if len(values) == 1 else f"{median} ({min(values):.2f}-{max(values):.2f})"


def ours(
    way: str, path: str, rows: TokenRows, *, batch: int, steps: int, device: torch.device, folder: Path, limit: int | None
) -> dict[str, Any]:
    """Train with tunemill's worker, at most ``limit`` tokens in a pass; the first step is not measured."""
    marks: list[tuple[float, float]] = []
    losses: list[float] = []

    def record(entry: dict[str, Any]) -> None:
        marks.append((time.perf_counter(), time.process_time()))
        losses.append(entry["loss"])

    settings = {"base_model": path, "batch_size": batch, "max_steps": steps, "packing": way, "save_steps": 10_000, "warmup": 0.0,
                "schedule": "constant", "micro_tokens": limit, "tensorboard": False}  # fmt: skip
    config = build(FinetuneConfig, settings, "benchmark")
    outcome = train(
        config,
        base_model=path,
        rows=rows,
        validation=TokenRows.of([]),
        seed=0,
        work=str(folder / "work"),
        adapter=None,
        hooks=Hooks(record=record),
        device=device,
    )
    plan = plan_of(config, len(rows), 0)
    tokens = sum(int(rows.lengths[plan.rows_of(step)].sum()) for step in range(1, steps))
    speed = outcome.speed
    return {
        "tokens": tokens, "losses": losses, "wall_s": marks[-1][0] - marks[0][0], "cpu_s": marks[-1][1] - marks[0][1],
        "peak_share": speed["share_of_gemm_peak"], "wait": speed["data_wait_share"],
        "memory": speed["peak_memory_bytes"] if device.type == "cuda" else None,
    }  # fmt: skip


def peer(
    way: str, path: str, rows: TokenRows, *, batch: int, steps: int, device: torch.device, folder: Path, limit: int | None
) -> dict[str, Any]:
    """The Hugging Face Trainer (or TRL's, which packs) with PEFT as its documentation shows, on the same batches.

    At most ``limit`` rows go through a forward pass; TRL's rows are packs of the longest row's length.
    """
    import peft
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    plan = plan_of(build(FinetuneConfig, {"batch_size": batch, "max_steps": steps}, "benchmark"), len(rows), 0)
    order = [number for step in range(steps) for number in plan.rows_of(step)]
    examples = [example(rows, number) for number in order]
    dtype = choose_precision("auto", device)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    torch.manual_seed(0)
    model = peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    marks: list[tuple[float, float]] = []
    at_once = limit or batch

    class Marks(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if device.type == "cuda":
                torch.cuda.synchronize()
            marks.append((time.perf_counter(), time.process_time()))

    values = {
        "output_dir": str(folder / "peer"),
        "max_steps": steps,
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": batch // at_once,
        "learning_rate": 2e-4,
        "lr_scheduler_type": "constant",
        "bf16": dtype == torch.bfloat16,
        "use_cpu": device.type == "cpu",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": 0,
    }
    trainer: Any
    if way == "trl":
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        trainer = SFTTrainer(model=model, args=SFTConfig(**values, packing=True, max_length=max(map(int, rows.lengths))),
                             train_dataset=Dataset.from_list(examples), callbacks=[Marks()])  # fmt: skip
    else:

        class InOrder(Trainer):
            def _get_train_sampler(self, *_: Any) -> SequentialSampler:
                return SequentialSampler(examples)

        trainer = InOrder(
            model=model, args=TrainingArguments(**values), train_dataset=examples, data_collator=pad, callbacks=[Marks()]
        )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    measured = [order[start : start + at_once] for start in range(batch, steps * batch, at_once)]
    # TRL fills its batches with packs, so it sees other rows in a step, and counts them itself.
    seen = [entry["num_tokens"] for entry in trainer.state.log_history if "num_tokens" in entry]
    return {
        "tokens": seen[-1] - seen[0] if way == "trl" else sum(int(rows.lengths[numbers].sum()) for numbers in measured),
        "padded": sum(len(numbers) * int(rows.lengths[numbers].max()) for numbers in measured),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "wall_s": marks[-1][0] - marks[0][0],
        "cpu_s": marks[-1][1] - marks[0][1],
    }


def example(rows: TokenRows, number: int) -> dict[str, list[int]]:
    """A row as the Hugging Face Trainer takes it."""
    ids, weights = rows.row(number)
    return {"input_ids": ids.tolist(), "labels": [int(i) if w else -100 for i, w in zip(ids, weights, strict=True)]}


def pad(examples: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Dynamic padding to the longest of the batch."""
    width = max(len(one["input_ids"]) for one in examples)
    return {
        "input_ids": torch.tensor([one["input_ids"] + [0] * (width - len(one["input_ids"])) for one in examples]),
        "attention_mask": torch.tensor([[1] * len(one["input_ids"]) + [0] * (width - len(one["input_ids"])) for one in examples]),
        "labels": torch.tensor([one["labels"] + [-100] * (width - len(one["labels"])) for one in examples]),
    }


def read_rows(arguments: argparse.Namespace, count: int) -> TokenRows:
    """Whole dialogues of at most ``--length`` tokens, drawn from all over the file, or random tokens of long-tailed lengths.

    Neighbours in a file are often alike, which would make padding look cheaper than it is after a shuffle.
    """
    rows: list[dict[str, Any]] = []
    if arguments.data:
        from tunemill.chat.tokenizer import load

        tokenizer = load(arguments.model)
        opener = gzip.open if arguments.data.suffix == ".gz" else open
        with opener(arguments.data, "rt", encoding="utf-8") as file:
            lines = file.readlines()
        for number in np.random.default_rng(0).permutation(len(lines)):
            turns = [
                {"role": {"human": "user", "gpt": "assistant"}[t["from"]], "content": t["value"]}
                for t in json.loads(lines[number])["conversations"]
            ]
            encoded = tokenizer.encode(turns[: len(turns) // 2 * 2])
            if encoded.input_ids and len(encoded.input_ids) <= arguments.length:
                rows.append({"id": f"r{number:06d}", "input_ids": encoded.input_ids, "loss_weights": encoded.loss_weights})
            if len(rows) == count:
                break
    else:
        draw = np.random.default_rng(0)
        vocabulary = SHAPES[arguments.shape or "tiny"]["vocab_size"]
        for number in range(count):
            length = int(np.clip(draw.lognormal(np.log(arguments.length / 4), 0.8), 16, arguments.length))
            ids = draw.integers(1, vocabulary, length).tolist()
            weights = [0.0] * (length // 2) + [1.0] * (length - length // 2)
            rows.append({"id": f"r{number:06d}", "input_ids": ids, "loss_weights": weights})
    schema = pa.schema([("id", pa.string()), ("input_ids", pa.list_(pa.int32())), ("loss_weights", pa.list_(pa.float32()))])
    return TokenRows.of([pa.Table.from_pylist(rows, schema=schema)])


def random_model(shape: str, folder: str) -> str:
    """Random bf16 weights of a true shape, on disk."""
    from transformers import MistralConfig, MistralForCausalLM

    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.set_default_dtype(torch.bfloat16)
        model = MistralForCausalLM(MistralConfig(**SHAPES[shape]))
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(f"{folder}/model")
    return f"{folder}/model"


def hardware(device: torch.device) -> str:
    """What it ran on."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(text.split(":", 1)[1].strip() for text in lines if text.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    return f"{name}, {os.cpu_count()} CPUs"


if __name__ == "__main__":
    main()
