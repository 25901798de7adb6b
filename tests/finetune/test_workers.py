"""Several workers over gloo on the CPU give the run of one worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from finetune.tiny import Run, config, run, tiny_model


def train_on(workers: int, folder: Path, model: str, *changes: dict[str, Any]) -> list[dict[str, Any]]:
    """What the first of so many ranks recorded in one run after another."""
    folder.mkdir()
    # As from a shell in which the environment is not activated.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": "/usr/local/bin:/usr/bin:/bin"}
    command = [sys.executable, str(Path(__file__).with_name("ranks.py")), str(workers), str(folder), model]
    done = subprocess.run(
        [*command, *(json.dumps(change) for change in changes)], env=env, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(len(changes))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama."""
    return tiny_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def alone(model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """One worker with batches of 8."""
    folder = tmp_path_factory.mktemp("alone")
    return run(config(model), folder), folder


def test_four_workers_match_one(model: str, alone: tuple[Run, Path], tmp_path: Path) -> None:
    """4 workers x 2 rows give the curves of 1 worker x 8 rows to 1e-5, and its adapter; so do 4 workers that accumulate."""
    one, folder = alone
    curves = train_on(4, tmp_path / "four", model, {}, {"accumulation": 2, "packing": "bucketed"})
    for curve in curves:
        np.testing.assert_allclose(curve["losses"], one.losses, atol=1e-5)
        np.testing.assert_allclose(curve["validation"], one.validation, atol=1e-5)
        assert curve["tokens"] == one.outcome.speed["tokens"]
    expected = load_file(folder / "adapter" / "adapter_model.safetensors")
    ours = load_file(tmp_path / "four" / "0-0" / "adapter" / "adapter_model.safetensors")
    for name, tensor in expected.items():
        np.testing.assert_allclose(ours[name], tensor, atol=1e-4)


def test_sharded_workers_match_one_and_go_on(model: str, alone: tuple[Run, Path], tmp_path: Path) -> None:
    """DeepSpeed ZeRO gives one worker's curves, with several passes a step, also when it goes on from a checkpoint.

    Under ZeRO-3 no worker ever holds the base model.
    """
    one, folder = alone
    settings: list[dict[str, Any]] = [{}]
    for stage in ("zero2", "zero3"):
        shared = {"deepspeed": stage, "accumulation": 2, "save_steps": 2}
        settings += [shared | {"keep": stage}, shared | {"resume": f"{stage}/checkpoint-2"}]
    plain, *sharded = train_on(2, tmp_path / "two", model, *settings)
    np.testing.assert_allclose(plain["losses"], one.losses, atol=1e-5)
    for curve, first in zip(sharded, (0, 2, 0, 2), strict=True):
        np.testing.assert_allclose(curve["losses"], one.losses[first:], atol=1e-4)
        np.testing.assert_allclose(curve["validation"], one.validation, atol=1e-4)
        assert curve["tokens"] == one.outcome.speed["tokens"]
    expected = load_file(folder / "adapter" / "adapter_model.safetensors")
    for number in (1, 2, 3, 4):
        ours = load_file(tmp_path / "two" / f"{number}-0" / "adapter" / "adapter_model.safetensors")
        for name, tensor in expected.items():
            np.testing.assert_allclose(ours[name], tensor, atol=1e-3)
    assert [curve["held"] for curve in sharded[2:]] == [0, 0]
