"""The embedded model's server: real llama.cpp in a Ray actor, one for each model entry that the driver calls.

Clients speak HTTP to it like to any OpenAI-compatible server. Answers are the same whatever else runs beside them:
each request brings its own seed, and on x86 the shipped Q4_1 weights are multiplied row by row, so that neither the
batch that a token happens to be in nor a prompt's cached beginning changes its rounding (measured: shuffled order, 16
slots against 3 in use, 1 against 2 threads, with and without the cache: all texts equal).
"""

from __future__ import annotations

import os
import platform
import socket
from typing import Any

from tunemill.errors import RunFailed

__all__ = ["EmbeddedServer", "embedded_base_url", "start_server", "stop_embedded"]

_NAME = "tunemill-embedded"
SLOTS = 8
"""Answers that are generated at once: the least CPU time for an answer among 4, 8, 16 and 32."""
SLOT_TOKENS = 2048
"""Longest prompt and answer together."""
_MOST_THREADS = 8
_CONNECTIONS = 128


class EmbeddedServer:
    """Holds a llama.cpp server; the actor's class, also usable without Ray. The server lives as long as the object."""

    def __init__(self, host: str, port: int, threads: int) -> None:
        self._server = start_server(host=host, port=port, threads=threads)
        self._url = f"{self._server.listening_address.rstrip('/')}/v1"

    def url(self) -> str:
        """OpenAI's base_url."""
        return self._url


def start_server(*, host: str = "127.0.0.1", port: int = 0, threads: int = 2, slots: int = SLOTS) -> Any:
    """A running ``xllamacpp.Server`` of SmolLM2-135M-Instruct; port 0 takes a free one. Returns when it can answer."""
    # OpenMP's threads spin at their barriers by default; where anything else wants the cores (Ray does), two spinning
    # threads are slower than one. Read once, when the library is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import xllamacpp

    from tunemill.embedded import smollm2_gguf

    params = xllamacpp.CommonParams()
    params.model.path = str(smollm2_gguf())
    params.model_alias = {"smollm2-135m"}
    params.hostnames, params.port = [host], port
    params.n_parallel, params.n_ctx, params.cont_batching = slots, SLOT_TOKENS * slots, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    # a thread serves one connection as long as it is kept alive; the callers' other connections would starve
    params.n_threads_http = _CONNECTIONS
    # saves a quarter of the time, since most of a prompt is the same; other CPUs' kernels may round by batch
    params.cache_prompt = platform.machine().lower() in ("x86_64", "amd64")
    params.cache_ram_mib, params.fit_params = 0, False
    params.verbosity = -1
    return xllamacpp.Server(params)


def embedded_base_url(name: str, servers: int = 1) -> str:
    """The base_url of the driver's embedded server of this name, which is started on first use and ends with the driver.

    ``servers`` is how many will share the machine: each takes its part of the cores. They listen on loopback, or on the
    node's address where Ray has several nodes, so that callers on all of them reach it.
    """
    import ray

    key = (ray.get_runtime_context().get_job_id(), name, servers)
    if key not in _actors:
        _actors[key] = _start(*key)
    try:
        return str(ray.get(_actors[key].url.remote()))
    except ray.exceptions.RayActorError as error:
        del _actors[key]
        raise RunFailed("the embedded model's server did not start or died; run the same command again") from error


def stop_embedded() -> None:
    """End the driver's embedded servers, if there are any, and free their memory."""
    import ray

    for actor in _actors.values():
        ray.kill(actor)
    _actors.clear()


_actors: dict[tuple[str, str, int], Any] = {}
"""Handles, which keep the actors alive: one for each Ray job (tests start several in one process), name and number of servers."""


def _start(job: str, name: str, servers: int) -> Any:
    import ray

    alone = sum(node["Alive"] for node in ray.nodes()) == 1
    host = "127.0.0.1" if alone else ray.util.get_node_ip_address()
    # Two threads of a model this small wait for each other more than they compute: two servers of one thread each
    # gave 146 tokens/s where one server of two threads gave 51 (two cores), so half of the cores stay without one.
    threads = max(1, min(_MOST_THREADS, (os.cpu_count() or 1) // (2 * servers)))
    # it reserves no CPU: with it, a two-core laptop would have none left for the callers that feed it.
    # The port is chosen here so that a restarted actor is found under the same address.
    options = {"name": f"{_NAME}-{job}-{name}", "num_cpus": 0, "max_restarts": 3, "max_concurrency": 4, "get_if_exists": True}
    return ray.remote(EmbeddedServer).options(**options).remote(host, _free_port(host), threads)


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
