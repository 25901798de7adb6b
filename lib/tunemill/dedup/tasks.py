"""Where the stage's work runs: here, one call after the other, or as Ray tasks beside the data they read.

A handle stands for a value that may lie on another node. Handles among the arguments of a call arrive as
values, and Ray runs the call where most of their bytes are. The two kinds answer the same.
"""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import pyarrow as pa

from tunemill.dedup.threads import cores
from tunemill.errors import RunFailed, root_cause

__all__ = ["Handle", "Here", "OnRay", "Tasks", "node_name"]

Handle = Any
"""A value (here) or a reference to one (on Ray)."""


class Tasks(Protocol):
    """Runs calls and keeps values."""

    @property
    def threads(self) -> int:
        """Processor cores for one call."""

    @property
    def slots(self) -> int:
        """Calls that run at once."""

    @property
    def nodes(self) -> int:
        """Machines that they run on."""

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``: where a search multiplies."""

    @property
    def room_bytes(self) -> float:
        """What kept values may take, in memory and spilled to disk."""

    def put(self, value: Any) -> Handle:
        """Keep a value that many calls read."""

    def start(self, work: Callable[..., Any], *arguments: Any, returns: int = 1, device: str = "cpu") -> Any:
        """Begin a call: a handle of its result, or a list of ``returns`` handles (results may come from an iterator)."""

    def get(self, handles: Sequence[Handle]) -> list[Any]:
        """The values, brought here. Raises what the calls raised."""

    def first(self, running: Sequence[Handle]) -> Handle:
        """A handle of those whose call has ended."""

    def all(self, work: Callable[..., Any], each: Iterable[tuple[Any, ...]]) -> list[Any]:
        """The results of one call for each tuple of arguments."""


class Here:
    """Calls run in this process, at once, on all its cores."""

    slots = 1
    nodes = 1
    device = "cpu"
    room_bytes = math.inf

    @property
    def threads(self) -> int:
        """All cores: nothing runs beside the call."""
        return cores()

    def put(self, value: Any) -> Handle:
        """The value itself."""
        return value

    def start(self, work: Callable[..., Any], *arguments: Any, returns: int = 1, device: str = "cpu") -> Any:
        """The result, or a list of the ``returns`` results."""
        result = work(*arguments)
        return result if returns == 1 else list(result)

    def get(self, handles: Sequence[Handle]) -> list[Any]:
        """The values themselves."""
        return list(handles)

    def first(self, running: Sequence[Handle]) -> Handle:
        """Every call has ended."""
        return running[0]

    def all(self, work: Callable[..., Any], each: Iterable[tuple[Any, ...]]) -> list[Any]:
        """One call after the other."""
        return [work(*arguments) for arguments in each]


class OnRay:
    """Calls are tasks of the connected cluster, repeated when a worker or a node dies; values lie in its object store."""

    def __init__(self, *, threads: int = 1, device: str = "auto") -> None:
        import ray

        from tunemill.resources import cluster_resources, node_count

        cpus, gpus = cluster_resources()
        self._ray = ray
        self._task = ray.remote(_call)
        self.threads = threads
        self.nodes = node_count()
        self.device = "cuda" if device == "cuda" or (device == "auto" and gpus >= 1) else "cpu"
        store = float(ray.cluster_resources().get("object_store_memory", 0))
        self.room_bytes = store + self.nodes * shutil.disk_usage(tempfile.gettempdir()).free
        self.slots = max(1, gpus if self.device == "cuda" else cpus // threads)

    def put(self, value: Any) -> Handle:
        """Keep a value in the object store."""
        return self._ray.put(value)

    def start(self, work: Callable[..., Any], *arguments: Any, returns: int = 1, device: str = "cpu") -> Any:
        """Begin a task."""
        use = {"num_cpus": self.threads, "num_gpus": 1 if device == "cuda" else 0}
        task = self._task.options(num_returns=returns, max_retries=3, name=work.__name__, **use)
        return task.remote(work, *arguments)

    def get(self, handles: Sequence[Handle]) -> list[Any]:
        """Bring values here; the project's own errors come as they were raised. RunFailed where a task died each time."""
        try:
            return list(self._ray.get(list(handles)))
        except self._ray.exceptions.RayTaskError as error:
            raise root_cause(error) or error from None
        except self._ray.exceptions.RayError as error:
            raise RunFailed(
                f"dedup: a worker or its data was lost again and again ({type(error).__name__}). Finished shards are kept: run "
                "the same command again; where memory or disk is short, with a smaller dedup.memory_gb or more dedup.shards"
            ) from error

    def first(self, running: Sequence[Handle]) -> Handle:
        """The first task to end."""
        [done], _ = self._ray.wait(list(running), num_returns=1)
        return done

    def all(self, work: Callable[..., Any], each: Iterable[tuple[Any, ...]]) -> list[Any]:
        """One task for each tuple; results in their order."""
        return self.get([self.start(work, *arguments) for arguments in each])


def _call(work: Callable[..., Any], *arguments: Any) -> Any:
    # What an earlier task of this process read stays with Arrow's allocator until it is asked to let go.
    pa.default_memory_pool().release_unused()
    return work(*arguments)


def node_name() -> str:
    """The Ray node that this process belongs to."""
    ray = sys.modules.get("ray")
    return str(ray.get_runtime_context().get_node_id())[:8] if ray is not None and ray.is_initialized() else "here"
