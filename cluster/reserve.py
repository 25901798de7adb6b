"""Ask the cluster's autoscaler for nodes and wait until they are there: python reserve.py CPUS GPUS [SECONDS].

A stage takes its size from the nodes that live when it starts, so a run wants its nodes before it is submitted. The
request stays until the next one; ``reserve.py 0 0`` takes it back, and the nodes go when they have been idle.
"""

from __future__ import annotations

import sys
import time


def bundles(cpus: int, gpus: int) -> list[dict[str, int]]:
    """One request for each CPU and each GPU, so that they may lie on any nodes."""
    return [{"CPU": 1}] * cpus + [{"GPU": 1}] * gpus


def missing(cpus: int, gpus: int, resources: dict[str, float]) -> dict[str, int]:
    """What the cluster's live resources lack."""
    lacking = {"CPU": cpus - int(resources.get("CPU", 0)), "GPU": gpus - int(resources.get("GPU", 0))}
    return {name: count for name, count in lacking.items() if count > 0}


def main(arguments: list[str]) -> None:
    """Return when the cluster has them; exit code 1 and what is missing after SECONDS (default 1200)."""
    if len(arguments) not in (2, 3) or not all(word.isdigit() for word in arguments):
        sys.exit("usage: reserve.py CPUS GPUS [SECONDS]")
    cpus, gpus, timeout_s = (*map(int, arguments), 1200)[:3]
    import ray
    from ray.autoscaler.sdk import request_resources

    ray.init(logging_level="ERROR")
    request_resources(bundles=bundles(cpus, gpus))
    until = time.monotonic() + timeout_s
    while lacking := missing(cpus, gpus, ray.cluster_resources()):
        if time.monotonic() > until:
            sys.exit(f"after {timeout_s} s the cluster still lacks {lacking}; `ray status` on the head says why")
        time.sleep(5)


if __name__ == "__main__":
    main(sys.argv[1:])
