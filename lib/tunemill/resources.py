"""The Ray session of a command: join the cluster there is, or start a local one.

Also the one place that says how many workers of a kind fit.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunemill.store import typed_cwd

__all__ = ["NAMESPACE", "cluster_resources", "connect", "node_count"]

NAMESPACE = "tunemill"


def connect() -> None:
    """Join the Ray of RAY_ADDRESS (set inside ``ray job submit``) or start a local one; does nothing when connected.

    The session ends with the process.
    """
    # Ray reads these when it is imported, in this process and in its workers.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Ray Data's own actors make its C++ layer warn on every start.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        options: dict[str, Any] = {"namespace": NAMESPACE, "logging_level": logging.ERROR, "log_to_driver": False}
        with _without_chatter(), _environment("TUNEMILL_CWD", typed_cwd()):
            if address:
                ray.init(address=address, runtime_env=_shipped(), **options)
            else:
                ray.init(address="local", include_dashboard=False, **options)
    _quieten()


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Ray's processes inherit the variable; this process, which may start other commands elsewhere, does not keep it."""
    kept = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name) if kept is None else os.environ.update({name: kept})


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Ray's C++ layer announces its log level on stderr while it starts; what fails there is raised, not printed."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _shipped() -> dict[str, Any]:
    """On a cluster the workers import this very package, unless it is installed there as a wheel."""
    package = Path(__file__).parent
    if "site-packages" in package.parts:
        return {}
    # What the job was submitted with reaches the workers anyway, and Ray refuses to be told twice.
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}").get("runtime_env", {}).get("env_vars", {})
    names = {"TUNEMILL_CWD", "TUNEMILL_CACHE"} - set(submitted)
    passed = {name: os.environ[name] for name in sorted(names) if name in os.environ}
    return {"py_modules": [str(package)], "env_vars": passed}


def _quieten() -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Our own errors reach the driver as they are, with their exit code.
    context.raise_original_map_exception = True
    # Rows keep their order: "first" and the k-th identical row mean the same on any number of workers.
    context.execution_options.preserve_order = True
    # What fails reaches the user once, as our own line.
    for name in ("ray.data", "ray.train", "ray.tune", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def cluster_resources() -> tuple[int, int]:
    """CPUs and GPUs of the connected cluster."""
    import ray

    resources = ray.cluster_resources()
    return int(resources.get("CPU", 1)), int(resources.get("GPU", 0))


def node_count() -> int:
    """Live nodes of the connected cluster."""
    import ray

    return sum(1 for node in ray.nodes() if node["Alive"])
