"""What a search may use: a few threads, each with single-threaded BLAS (many small products run faster so than one
product on all cores), and the GPUs that FAISS was built for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["cores", "faiss_gpus", "side_by_side"]

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(work: Callable[[T], R], items: Iterable[T], threads: int) -> list[R]:
    """Run ``work`` on a few threads; results in the order of ``items``."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        if threads == 1:
            return [work(item) for item in items]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(work, items))


def cores() -> int:
    """Processor cores that this process may use: those it runs on, or OMP_NUM_THREADS where that is fewer."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(here, int(wanted)) if wanted.isdigit() and int(wanted) > 0 else here


def faiss_gpus() -> int:
    """GPUs that the installed FAISS can use: none with faiss-cpu, none where this process sees none."""
    import faiss

    return int(faiss.get_num_gpus())
