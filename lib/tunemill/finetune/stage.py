"""The finetune stage: tokenised rows -> a LoRA adapter, by Ray Train.

Everything that can be known beforehand is checked before a worker starts. A run that was killed goes on
from its last checkpoint when the same command is given again.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import Any

import pyarrow as pa

from tunemill.config import essential, fingerprint
from tunemill.errors import RunFailed, root_cause
from tunemill.finetune import checks
from tunemill.finetune.config import FinetuneConfig
from tunemill.finetune.data import Loaded, load_rows
from tunemill.finetune.metrics import Watcher, read_metrics
from tunemill.resources import cluster_resources, connect
from tunemill.stage import Outcome, Source, Stage, StageContext, write_table

__all__ = ["STAGE", "execute"]

_CURVE_POINTS = 500


def execute(context: StageContext, source: Source, config: FinetuneConfig) -> Outcome:
    """Train an adapter into ``adapter/``; rows in are those of the train and validation splits."""
    from tunemill.chat.proof import prove
    from tunemill.chat.tokenizer import load
    from tunemill.finetune.result import finish_adapter, push

    connect()
    cpus, gpus = cluster_resources()
    gpus_per_worker = checks.check_cluster(config, cpus=cpus, gpus=gpus)
    base_model, settings = checks.check_base_model(config)
    tokenizer = load(config.base_model)
    proof = [dataclasses.asdict(check) for check in prove(tokenizer)]
    rows = load_rows(source)
    checks.check_rows(rows, settings, config.base_model)
    folder = context.store.folder
    name = _run_name(config, source.describe, context.seed)
    checks.check_checkpoints(folder.join("checkpoints"), name, config, source.describe)

    outcome = _train(context, config, rows, base_model=base_model, gpus_per_worker=gpus_per_worker, name=name)
    metrics = read_metrics(folder.join("metrics.jsonl"))
    details = _details(config, rows, outcome, metrics) | {"proof": proof, "seed": context.seed}
    finish_adapter(folder.join("adapter"), tokenizer, config, details)
    if config.push_to_hub:
        push(folder.join("adapter"), config.push_to_hub)
    checks.mark_done(folder.join("checkpoints"), name)
    return _outcome(context, rows, details)


def _run_name(config: FinetuneConfig, input_: dict[str, Any], seed: int) -> str:
    # A sharded optimiser can only be resumed with the same sharding.
    sharding = [config.deepspeed, config.workers] if config.deepspeed else None
    return f"run-{fingerprint([essential(config), input_.get('fingerprint'), seed, sharding])}"


def _train(
    context: StageContext, config: FinetuneConfig, rows: Loaded, *, base_model: str, gpus_per_worker: int, name: str
) -> dict[str, Any]:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from tunemill.finetune.ray_loop import ray_worker

    folder = context.store.folder
    checkpoints = folder.join("checkpoints")
    job = {
        "config": config,
        "base_model": base_model,
        "train": rows.train,
        "validation": rows.validation,
        "seed": context.seed,
        "adapter": folder.join("adapter"),
        "metrics": folder.join("metrics.jsonl"),
        "threads": config.cpus_per_worker,
    }
    resources = {"CPU": config.cpus_per_worker or 1, **({"GPU": gpus_per_worker} if gpus_per_worker else {})}
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    trainer = TorchTrainer(
        ray_worker,
        train_loop_config=job,
        torch_config=TorchConfig(backend="nccl" if gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=bool(gpus_per_worker), resources_per_worker=resources),
        run_config=RunConfig(
            name=name,
            storage_path=checkpoints.path,
            storage_filesystem=checkpoints.fs if checkpoints.is_remote else None,
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=config.keep_checkpoints),
            worker_runtime_env={"env_vars": _passed_environment()},
        ),
    )
    with Watcher(folder.join("metrics.jsonl"), _show(context, config, rows)):
        result = _fit(trainer)
    if "error" in result:
        raise result["error"]
    return dict(result["outcome"])


def _fit(trainer: Any) -> dict[str, Any]:
    from ray.train.v2.api.exceptions import TrainingFailedError

    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        raise _explain(error) from error
    if result.error is not None:
        raise _explain(result.error) from result.error
    return dict(result.return_value)


def _explain(error: Any) -> Exception:
    failures = [*getattr(error, "worker_failures", {}).values(), error]
    for failure in failures:
        known = root_cause(failure)
        if known is not None:
            return known
    text = str(failures[0]).strip().splitlines()
    reason = text[-1][:300] if text else type(failures[0]).__name__
    return RunFailed(f"finetune: training stopped ({reason}); the same command goes on from the last checkpoint")


def _passed_environment() -> dict[str, str]:
    """Settings that workers on other nodes need as well; no secrets but those of the hub's own cache."""
    names = ("TUNEMILL_CACHE", "TUNEMILL_CWD", "HF_HUB_OFFLINE", "HF_HOME", "GOMP_SPINCOUNT")
    # Threads that wait spin for a few microseconds before they sleep. On two idle cores that is as fast as spinning a hundred
    # times as long (336 and 334 tokens/s); beside one busy process it keeps 200 tokens/s, twenty times as long only 117.
    chosen = {"TOKENIZERS_PARALLELISM": "false", "GOMP_SPINCOUNT": "1000"}
    return {**chosen, **{name: os.environ[name] for name in names if name in os.environ}}


def _show(context: StageContext, config: FinetuneConfig, rows: Loaded) -> Any:
    from tunemill.finetune.worker import plan_of

    plan = plan_of(config, rows.train_rows, context.seed)
    context.progress.total(round(plan.epoch_of(plan.steps) * rows.train_rows))
    shown = 0

    def seen(record: dict[str, Any]) -> None:
        nonlocal shown
        done = round(record["epoch"] * rows.train_rows)
        context.progress.figures(
            step=f"{record['step']} of {plan.steps}", loss=f"{record['loss']:.4f}", tokens=f"{record['tokens_per_s']:,.0f}/s"
        )
        context.progress.advance(done - shown)
        shown = done

    return seen


def _details(config: FinetuneConfig, rows: Loaded, outcome: dict[str, Any], metrics: list[dict[str, Any]]) -> dict[str, Any]:
    losses = [[m["step"], m["loss"]] for m in metrics if "loss" in m]
    thin = max(1, -(-len(losses) // _CURVE_POINTS))
    return {
        "base_model": config.base_model,
        "rows": {"train": rows.train_rows, "validation": rows.validation_rows, "no_trainable_token": len(rows.untrainable)},
        "tokens": rows.tokens,
        "trained_tokens": rows.trained_tokens,
        "longest": rows.longest,
        "losses": losses[::thin],
        "validation_losses": [[m["step"], m["eval_loss"]] for m in metrics if "eval_loss" in m],
        **outcome,
    }


def _outcome(context: StageContext, rows: Loaded, details: dict[str, Any]) -> Outcome:
    files: dict[str, list[str]] = {"data": [], "dropped": []}
    if rows.untrainable:
        table = pa.table({"id": rows.untrainable, "reason": ["no_trainable_token"] * len(rows.untrainable)})
        files["dropped"].append(write_table(context, "dropped", table))
    kept = rows.train_rows + rows.validation_rows
    dropped = {"no_trainable_token": len(rows.untrainable)} if rows.untrainable else {}
    return Outcome(rows_in=kept + len(rows.untrainable), rows_kept=kept, rows_dropped=dropped, files=files, details=details)


STAGE = Stage(name="finetune", config_type=FinetuneConfig, execute=execute, check=checks.check_config)
