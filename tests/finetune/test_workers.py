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


def train_on(workers: int, folder: Path, model: str, *changes: dict[str, Any]) -> list[dict[str, list[float]]]:
    """Curves of one run after another on so many processes."""
    folder.mkdir()
    # As from a shell in which the environment is not activated.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": "/usr/local/bin:/usr/bin:/bin"}
    command = [str(Path(__file__).with_name("ranks.py"))]
    texts = [json.dumps(change) for change in changes]
    ranks = [
        subprocess.Popen(
            [sys.executable, *command, str(rank), str(workers), str(folder), model, *texts],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(workers)
    ]
    outputs = [process.communicate(timeout=280)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0] * workers, "\n".join(text[-3000:] for text in outputs)
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(len(changes))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama."""
    return tiny_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def alone(model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """One worker."""
    folder = tmp_path_factory.mktemp("alone")
    return run(config(model), folder), folder


def test_two_workers_match_one(model: str, alone: tuple[Run, Path], tmp_path: Path) -> None:
    """Plain data parallelism, also with accumulation, gives one worker's curves to 1e-5 and its adapter."""
    one, folder = alone
    curves = train_on(2, tmp_path / "two", model, {}, {"accumulation": 2, "packing": "bucketed"})
    for curve in curves:
        np.testing.assert_allclose(curve["losses"], one.losses, atol=1e-5)
        np.testing.assert_allclose(curve["validation"], one.validation, atol=1e-5)
    expected = load_file(folder / "adapter" / "adapter_model.safetensors")
    ours = load_file(tmp_path / "two" / "0-0" / "adapter" / "adapter_model.safetensors")
    for name, tensor in expected.items():
        np.testing.assert_allclose(ours[name], tensor, atol=1e-4)


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_sharded_workers_match_one(stage: str, model: str, alone: tuple[Run, Path], tmp_path: Path) -> None:
    """DeepSpeed ZeRO gives one worker's curves, with several passes a step, and goes on from its checkpoint."""
    one, _ = alone
    settings = {"deepspeed": stage, "accumulation": 2, "save_steps": 3}
    (curve,) = train_on(2, tmp_path / stage, model, settings)
    np.testing.assert_allclose(curve["losses"], one.losses, atol=1e-4)
    np.testing.assert_allclose(curve["validation"], one.validation, atol=1e-4)
