"""End a cluster of ``ray.cluster_utils`` beside a Ray session that other tests share."""

from __future__ import annotations

from typing import Any

__all__ = ["shut_down"]


def shut_down(cluster: Any) -> None:
    """Stop all nodes."""
    import ray
    from ray.experimental.internal_kv import _initialize_internal_kv

    cluster.shutdown()
    if ray.is_initialized():
        # The simulated cluster took over this process's key-value client; other tests share a session that needs it.
        _initialize_internal_kv(ray._private.worker.global_worker.gcs_client)
