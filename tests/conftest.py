"""Fixtures that every test may use: one local Ray session for the whole test run, on loopback."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

_LONGEST = ("tests/test_pipeline.py", "tests/llm/test_chaos.py", "tests/finetune/test_stage.py", "tests/finetune/test_workers.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files first, so that no process is left alone with one of them in the end."""
    items.sort(key=lambda item: item.path.relative_to(config.rootpath).as_posix() not in _LONGEST)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray with two CPUs, shared by all tests that ask for it."""
    import ray

    from tunemill.resources import connect

    ray.init(
        address="local", num_cpus=2, include_dashboard=False, namespace="tunemill", log_to_driver=False, logging_level="ERROR"
    )
    connect()
    yield
    ray.shutdown()
