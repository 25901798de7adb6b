"""The Ray Train edge: one worker of a TorchTrainer, from object references to checkpoints that Ray keeps."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tunemill.errors import TunemillError

__all__ = ["ray_worker"]


def ray_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Train as one worker of ``job`` (made by the finetune stage); returns the outcome or the error as plain values.

    Errors that a restart would only repeat are returned, not raised: what is raised, Ray Train tries again.
    """
    import ray
    import ray.train

    from tunemill.finetune.rows import TokenRows
    from tunemill.finetune.worker import train

    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    work = tempfile.mkdtemp(prefix="tunemill-finetune-")
    try:
        resume = _fetch_checkpoint(work)
        outcome = train(
            job["config"],
            base_model=job["base_model"],
            rows=TokenRows.of(ray.get(job["train"])),
            validation=TokenRows.of(ray.get(job["validation"])),
            seed=job["seed"],
            work=work,
            adapter=os.path.join(work, "adapter"),
            hooks=_hooks(job, resume, rank),
            resume=resume,
            workers=workers,
            rank=rank,
            device=_device(),
            threads=job["threads"] or max(1, len(os.sched_getaffinity(0)) // context.get_local_world_size()),
        )
        if rank == 0:
            _upload(os.path.join(work, "adapter"), job["adapter"])
        return {"outcome": dataclasses.asdict(outcome)}
    except TunemillError as error:
        return {"error": error}
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _device() -> Any:
    from ray.train.torch import get_device

    return get_device()


def _fetch_checkpoint(work: str) -> str | None:
    """This worker's copy of the latest checkpoint, or None at the start of a run."""
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        step = json.loads(Path(folder, "tunemill.json").read_text(encoding="utf-8"))["step"]
        # The Trainer reads the step from the folder's name.
        return shutil.copytree(folder, os.path.join(work, "resume", f"checkpoint-{step}"))


def _hooks(job: dict[str, Any], resume: str | None, rank: int) -> Any:
    import ray.train
    from ray.train import Checkpoint

    from tunemill.finetune.metrics import MetricsFile
    from tunemill.finetune.trainer import Hooks

    metrics = None
    if rank == 0:
        first_step = int(resume.rsplit("-", 1)[1]) if resume else 0
        metrics = MetricsFile(job["metrics"], first_step=first_step, tensorboard=job["config"].tensorboard)

    def saved(folder: str, record: dict[str, Any]) -> None:
        if metrics is not None:
            metrics.flush()
        # Each worker hands in only what it wrote itself: the first the adapter and optimiser, the others their random
        # state and their shards.
        ray.train.report(record, checkpoint=Checkpoint.from_directory(folder), checkpoint_dir_name=os.path.basename(folder))
        shutil.rmtree(folder, ignore_errors=True)

    def preempted() -> bool:
        return ray.train.get_preemption_info() is not None

    return Hooks(record=metrics.add if metrics is not None else lambda record: None, saved=saved, preempted=preempted)


def _upload(folder: str, target: Any) -> None:
    for file in sorted(Path(folder).iterdir()):
        target.join(file.name).write_bytes(file.read_bytes())
