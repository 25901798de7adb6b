"""The ranks of training runs over gloo, without Ray: ``python ranks.py WORLD FOLDER MODEL CHANGES...`` (JSON objects).

Each of ``CHANGES`` is one run, in turn, on the same ranks; ``keep`` puts its checkpoints together under that folder, as
Ray Train does, and ``resume`` goes on from one. The ranks are forks, so that only one process imports the libraries.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"
sys.path.insert(0, str(Path(__file__).parents[1]))

import deepspeed  # noqa: F401 - imported before the forks
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from finetune.tiny import config, run
from tunemill.finetune import worker
from tunemill.finetune.trainer import Hooks

world, folder, model = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]


def main(rank: int) -> None:
    """Train under each set of changes in turn; the first rank writes what it recorded."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT="0",
    )  # fmt: skip
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    for number, text in enumerate(sys.argv[4:]):
        train(rank, number, json.loads(text))
    dist.destroy_process_group()


def train(rank: int, number: int, changes: dict[str, Any]) -> None:
    """One run on this rank."""
    AcceleratorState._reset_state(reset_partial_state=True)
    unset_hf_deepspeed_config()
    resume, kept = changes.pop("resume", None), changes.pop("keep", None)
    records: list[dict[str, Any]] = []

    def saved(source: str, record: dict[str, Any]) -> None:
        if kept:
            shutil.copytree(source, folder / kept / Path(source).name, dirs_exist_ok=True)

    done = run(
        config(model, **changes),
        folder / f"{number}-{rank}",
        hooks=Hooks(record=records.append, saved=saved),
        workers=world,
        rank=rank,
        resume=str(folder / resume) if resume else None,
    )
    done.records = records
    dist.barrier()
    if rank == 0:
        held = {
            "losses": done.losses,
            "validation": done.validation,
            "held": held_weights[-1],
            "tokens": done.outcome.speed["tokens"],
        }
        (folder / f"{number}.json").write_text(json.dumps(held))


held_weights: list[int] = []
plain_prepare = worker.prepare


def prepare(*args: Any, **kwargs: Any) -> Any:
    """The worker's own, noting how many base weights this rank holds when the model is loaded."""
    prepared = plain_prepare(*args, **kwargs)
    held_weights.append(sum(p.numel() for p in prepared.model.parameters() if not p.requires_grad))
    return prepared


worker.prepare = prepare
children = []
for number in range(world):
    child = os.fork()
    if child == 0:
        main(number)
        sys.exit()
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
sys.exit(max(codes, key=abs))
