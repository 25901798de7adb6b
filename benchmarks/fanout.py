"""Limit use, overhead, memory and faults of the fan-out, ours and peers on the same mock.

    python benchmarks/fanout.py limits --rpm 600 --callers 4       one setting; --tpm, --jobs 2, --seconds 75
    python benchmarks/fanout.py suite                               all settings of limits, on one cluster
    python benchmarks/fanout.py overhead                            CPU per call, layer by layer
    python benchmarks/fanout.py memory --rows 100000
    python benchmarks/fanout.py faults
    python benchmarks/fanout.py peer --peer bucket --callers 4      bucket | curator | raydata
    python benchmarks/fanout.py report                              benchmarks/results/fanout.md from all of the above

Every command adds one line to benchmarks/results/fanout.jsonl. Limit use is counted by the mock: answered
requests of the steady state (after the first ten seconds) over what its sliding window allows.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import logging
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
sys.path[:0] = [str(ROOT.parent / "tests"), str(ROOT)]

from mock_provider import Faults, Latency, Limit, MockConfig, MockHandle, start_mock  # noqa: E402
from tunemill.llm.config import Limits, ModelConfig, Params, Price  # noqa: E402

os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")
RESULTS = ROOT / "results" / "fanout.jsonl"
WARM_S = 10.0
START_S = 90.0
"""A peer gets this long to make its first call."""
MIXED = ("throttle", "server_error", "unavailable", "gateway", "cut", "truncated", "empty", "error_200")


def model_at(mock: MockHandle, **changes: Any) -> ModelConfig:
    """The model that every measurement calls."""
    os.environ["MOCK_KEY"] = "mock-secret-key"
    values: dict[str, Any] = {
        "name": "m",
        "provider": "openai",
        "model": "mock-1",
        "base_url": f"{mock.url}/v1",
        "api_key_env": "MOCK_KEY",
        "params": Params(max_tokens=50),
        "limits": Limits(concurrency=256),
        "price": Price(input=1.0, output=2.0),
    }
    return ModelConfig(**{**values, **changes})


def rows_for(count: int, job: str = "a") -> list[dict[str, Any]]:
    """Rows with prompts of one sentence."""
    return [
        {
            "prompt_id": f"{job}{i}",
            "model": "m",
            "prompt": f"[[{job}{i}]] Write a sentence about topic {i}.",
            "system": None,
            "sample": 0,
        }
        for i in range(count)
    ]


def steady(mock: MockHandle, seconds: float) -> dict[str, Any]:
    """What the mock saw between the first ten seconds after its first request and the end of the run."""
    records = [record for record in mock.records() if record["outcome"] == "throttled" or record["paid"]]
    first = records[0]["time"]
    inside = [record for record in records if WARM_S < record["time"] - first <= seconds]
    answered = [record for record in inside if record["status"] == 200]
    throttled = sum(record["status"] == 429 for record in inside)
    return {
        "seconds": seconds - WARM_S,
        "requests": len(inside),
        "answered": len(answered),
        "throttled": throttled,
        "tokens": sum(record["input_tokens"] + record["output_tokens"] for record in answered),
        "ids": [record["prompt_id"] for record in answered],
    }


def start_cluster(nodes: int = 2) -> Any:
    """A cluster of simulated nodes on this machine, and this process connected to it."""
    import ray
    import ray.data
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "include_dashboard": False})
    for _ in range(nodes - 1):
        cluster.add_node(num_cpus=8)
    ray.init(address=cluster.address, namespace="tunemill", log_to_driver=False, logging_level=logging.ERROR)
    quiet()
    return cluster


def quiet() -> None:
    """No progress bars, no info lines."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def run_job(
    name: str, rows: list[dict[str, Any]], model: ModelConfig, folder: Path, *, workers: int, stop: threading.Event | None = None
) -> tuple[int, float]:
    """One job through the whole of Ray Data, ended early by ``stop``; returns rows answered and seconds."""
    import ray.data

    from tunemill.llm.caller import open_calls
    from tunemill.progress import Progress

    began, answered = time.monotonic(), 0
    with open_calls(
        models=(model,), journal=str(folder / name), job=name, progress=Progress(quiet=True), workers=workers
    ) as calls:
        if stop is not None:
            threading.Thread(target=lambda: (stop.wait(), calls.stop()), daemon=True).start()
        source = ray.data.from_items(rows, override_num_blocks=max(8, len(rows) // 1000))
        for batch in calls.rows(source).iter_batches(batch_size=None, batch_format="pyarrow"):
            answered += batch.column("reason").null_count
    return answered, time.monotonic() - began


def limits(options: argparse.Namespace) -> dict[str, Any]:
    """Use of a request or token limit, on a cluster of its own."""
    cluster = start_cluster()
    try:
        return one_setting(options)
    finally:
        shut(cluster)


def suite(options: argparse.Namespace) -> None:
    """Every setting of the limits on one cluster, each recorded as it ends."""
    cluster = start_cluster()
    settings = [{"rpm": rpm, "callers": callers} for rpm in (600.0, 6000.0) for callers in (1, 4, 16)]
    settings += [{"rpm": 6000.0, "tpm": 20_000.0, "callers": 4}, {"rpm": 600.0, "callers": 4, "jobs": 2}]
    settings += [{"rpm": 6000.0, "callers": 4, "jobs": 2}]
    for setting in [settings[int(number)] for number in options.only.split(",")] if options.only else settings:
        chosen = argparse.Namespace(**{**vars(options), "what": "limits", **setting})
        with contextlib.ExitStack() as stack:
            if options.lock:
                file = stack.enter_context(open(options.lock, "w"))
                fcntl.flock(file, fcntl.LOCK_EX)
            record(chosen, one_setting(chosen))
    shut(cluster)


def one_setting(options: argparse.Namespace) -> dict[str, Any]:
    """Use of one limit, with the cluster that this process is connected to."""
    limit = Limit(rpm=options.rpm, tpm=options.tpm)
    config = MockConfig(limits={"*": limit}, latency=Latency(kind="lognormal", mean_s=0.3))
    jobs = [chr(97 + i) for i in range(options.jobs)]
    with tempfile.TemporaryDirectory() as folder, start_mock(config) as mock:
        model = model_at(mock, limits=Limits(rpm=options.rpm, tpm=options.tpm, concurrency=256))
        count = int(options.rpm / 60 * (options.seconds + 30) / options.jobs) + 400
        stop = threading.Event()
        kwargs = {"workers": max(1, options.callers // options.jobs), "stop": stop}
        threads = [
            threading.Thread(target=run_job, args=(job, rows_for(count, job), model, Path(folder)), kwargs=kwargs) for job in jobs
        ]
        for thread in threads:
            thread.start()
        while not mock.stats().get("answered"):
            time.sleep(0.2)
        time.sleep(options.seconds + 2)
        stop.set()
        for thread in threads:
            thread.join()
        seen = steady(mock, options.seconds)
    ids = seen.pop("ids")
    use = seen["answered"] / (options.rpm / 60 * seen["seconds"])
    if options.tpm is not None:
        use = max(use, seen["tokens"] / (options.tpm / 60 * seen["seconds"]))
        # the mock, like OpenAI, holds max_tokens of a call until it has answered: what it holds too much nobody can use
        held = (50 - config.answer_tokens) * 0.3 * math.exp(0.5**2 / 2) * seen["requests"] / seen["seconds"]
        seen["possible"] = round(1 - held / options.tpm, 4)
    shares = {job: round(sum(item.startswith(job) for item in ids) / max(len(ids), 1), 3) for job in jobs}
    throttled = round(seen["throttled"] / max(seen["requests"], 1), 5)
    return {"use": round(use, 4), "throttled_share": throttled, **seen, "shares": shares}


def shut(cluster: Any) -> None:
    """End this process's connection and the cluster that it started."""
    import ray

    ray.shutdown()
    cluster.shutdown()


LAYERS = ("bare", "caller", "budget", "journal")


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds per call of each layer while calls flow, the layers in turn in each of several rounds.

    CPU time is steady against other load on the machine; start-up (imports, joining the cluster) is counted apart.
    """
    rounds: list[dict[str, dict[str, float]]] = []
    with (
        tempfile.TemporaryDirectory() as name,
        start_mock(MockConfig(latency=Latency(mean_s=0.05)), log=Path(os.devnull)) as mock,
        local_ray(),
    ):
        model = model_at(mock)
        run_job("warm", rows_for(200, "w"), model, Path(name), workers=1)
        for number in range(options.rounds):
            folder = Path(name) / str(number)
            found = {layer: asyncio.run(_layer(layer, model, folder, options.rows, f"{number}{layer}")) for layer in LAYERS}
            found["ray"] = _ray_layer(model, mock, folder, options.rows, f"{number}ray")
            rounds.append(found)
            print({layer: value["caller_ms"] for layer, value in found.items()}, flush=True)
    return {"rounds": len(rounds), **{layer: _spread([found[layer] for found in rounds]) for layer in (*LAYERS, "ray")}} | {
        "ratio": _middle([found["bare"]["caller_ms"] / found["ray"]["caller_ms"] for found in rounds]),
        "ratio_all": _middle([found["bare"]["caller_ms"] / found["ray"]["all_ms"] for found in rounds]),
    }


def _spread(found: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: _middle([values[name] for values in found]) for name in found[0]}


def _middle(values: list[float]) -> list[float]:
    """Median, least, most."""
    return [round(value, 4) for value in (statistics.median(values), min(values), max(values))]


async def _layer(layer: str, model: ModelConfig, folder: Path, count: int, job: str) -> dict[str, float]:
    from llm.harness import open_worker

    rows = rows_for(count, job)
    if layer == "bare":
        return await _bare(model, rows)
    budget = _NoBudget() if layer == "caller" else None
    writer = None if layer == "journal" else _NoJournal()
    async with open_worker(folder / layer, model, writer=writer, budget=budget) as worker:  # type: ignore[arg-type]
        cpu, wall = time.process_time(), time.monotonic()
        queue = iter([rows[i : i + 256] for i in range(0, count, 256)])

        async def pull() -> None:
            for block in queue:
                await worker.call(block)

        await asyncio.gather(*(pull() for _ in range(16)))
        cpu_s, wall_s = time.process_time() - cpu, time.monotonic() - wall
    return {"caller_ms": 1000 * cpu_s / count, "wall_per_s": count / wall_s}


async def _bare(model: ModelConfig, rows: list[dict[str, Any]]) -> dict[str, float]:
    """256 requests in flight over the same HTTP client, and nothing else."""
    import httpx
    from httpx_aiohttp import AiohttpTransport

    from tunemill.llm.providers import provider_for
    from tunemill.llm.request import Prompt, keyed_request

    provider = provider_for("openai")
    queue = iter([keyed_request(provider, model, Prompt.of(row["prompt"]))[1] for row in rows])
    pool = httpx.Limits(max_connections=256, max_keepalive_connections=256)
    headers = provider.auth_headers(model)
    async with httpx.AsyncClient(transport=AiohttpTransport(limits=pool), timeout=60) as client:

        async def pull() -> None:
            for wire in queue:
                response = await client.post(wire.url, content=wire.body, headers={**wire.headers, **headers})
                response.json()

        cpu, wall = time.process_time(), time.monotonic()
        await asyncio.gather(*(pull() for _ in range(256)))
        cpu_s, wall_s = time.process_time() - cpu, time.monotonic() - wall
    return {"caller_ms": 1000 * cpu_s / len(rows), "wall_per_s": len(rows) / wall_s}


class _NoJournal:
    """A journal that writes nothing, to see what writing costs."""

    async def intend(self, entries: Any) -> None:
        """Nothing."""

    async def record(self, entries: Any) -> None:
        """Nothing."""

    async def close(self) -> None:
        """Nothing."""


class _NoBudget:
    """A budget that allows everything at once, to see what asking costs."""

    async def join(self, *_: Any) -> Any:
        """Everything."""
        from tunemill.llm.messages import Grant

        return Grant("open", epoch="e", quota=256)

    report = lease = join

    async def leave(self, caller: str) -> None:
        """Nothing."""


@contextlib.contextmanager
def local_ray() -> Iterator[None]:
    """A Ray of its own on this machine."""
    import ray

    options = {"address": "local", "num_cpus": 4, "include_dashboard": False, "log_to_driver": False}
    ray.init(**options, logging_level=logging.ERROR, namespace="tunemill")
    quiet()
    try:
        yield
    finally:
        ray.shutdown()


def _ray_layer(model: ModelConfig, mock: MockHandle, folder: Path, count: int, job: str) -> dict[str, float]:
    """The whole of Ray Data with one caller: CPU of the caller, of budget and ledger, of the driver, of Ray's own processes."""
    before = mock.stats().get("answered", 0)
    watch = Watch(0.25, skip=mock.process.pid, answered=lambda: mock.stats().get("answered", 0) - before)
    watch.start()
    answered, _ = run_job(job, rows_for(count, job), model, folder, workers=1)
    watch.stop()
    watch.keep(0.15 * answered, 0.95 * answered)
    seconds, calls = watch.steady()
    used = {title: 1000 * cpu_s / calls for title, cpu_s in watch.cpu().items()}
    budget = sum(used.pop(f"ray::{name}", 0.0) for name in ("_BudgetActor", "_LedgerActor"))
    caller, driver = used.pop("ray::MapWorker"), used.pop("driver")
    found = {"caller_ms": caller, "budget_ms": budget, "driver_ms": driver, "ray_ms": sum(used.values())}
    return {**found, "all_ms": sum(found.values()), "wall_per_s": calls / seconds, "start_s": watch.start_cpu_s("ray::MapWorker")}


class Watch(threading.Thread):
    """Samples CPU time and memory of this process and of its Ray processes by their names."""

    def __init__(self, every_s: float = 0.5, *, skip: int = 0, answered: Callable[[], int] = int) -> None:
        super().__init__(daemon=True)
        self._every_s, self._skip, self._answered = every_s, skip, answered
        self._done = threading.Event()
        self._cpu: dict[tuple[int, str], float] = {}
        self._before: dict[int, float] = {}
        self.samples: list[tuple[float, int, dict[str, float]]] = []
        """(time, calls answered, CPU seconds by name)"""
        self.memory: list[tuple[float, dict[str, float]]] = []

    def run(self) -> None:
        """Sample until stopped."""
        import psutil

        began = time.monotonic()
        me = psutil.Process()
        for process in me.children(recursive=True):
            self._before[process.pid] = sum(process.cpu_times()[:2])
        while not self._done.wait(self._every_s):
            now: dict[str, float] = {"driver": me.memory_info().rss / 2**20}
            answered = self._answered()
            self._cpu[me.pid, "driver"] = time.process_time()
            for process in me.children(recursive=True):
                if process.pid == self._skip:
                    continue
                try:
                    title = " ".join(process.cmdline()).split("(")[0].split(".")[0].split(" ")[0].rsplit("/", 1)[-1]
                    self._cpu[process.pid, title] = sum(process.cpu_times()[:2]) - self._before.get(process.pid, 0.0)
                    private = process.memory_info().rss - process.memory_info().shared
                except psutil.Error:
                    continue
                now[title] = max(now.get(title, 0.0), private / 2**20)
            totals: dict[str, float] = {}
            for (_, title), cpu_s in self._cpu.items():
                totals[title] = totals.get(title, 0.0) + cpu_s
            self.samples.append((time.monotonic(), answered, totals))
            self.memory.append((time.monotonic() - began, now))

    def stop(self) -> None:
        """End sampling."""
        self._done.set()
        self.join()

    def keep(self, first: float, last: float) -> None:
        """Keep the samples between two numbers of answered calls, and those before the first for :meth:`start_cpu_s`."""
        self._early = next(sample for sample in self.samples if sample[1] > 0)
        self.samples = [sample for sample in self.samples if first <= sample[1] <= last]

    def steady(self) -> tuple[float, int]:
        """Seconds and calls that the kept samples span."""
        return self.samples[-1][0] - self.samples[0][0], self.samples[-1][1] - self.samples[0][1]

    def cpu(self) -> dict[str, float]:
        """CPU seconds of each name over the kept samples."""
        first, last = self.samples[0][2], self.samples[-1][2]
        return {title: value - first.get(title, 0.0) for title, value in last.items()}

    def start_cpu_s(self, title: str) -> float:
        """CPU seconds of a name until calls were answered."""
        return self._early[2].get(title, 0.0)


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Memory of every process over a long run."""
    with (
        tempfile.TemporaryDirectory() as name,
        start_mock(MockConfig(latency=Latency(mean_s=0.05)), log=Path(os.devnull)) as mock,
        local_ray(),
    ):
        watch = Watch(2.0, skip=mock.process.pid)
        watch.start()
        answered, wall_s = run_job("m", rows_for(options.rows), model_at(mock), Path(name), workers=1)
        watch.stop()
    points = [watch.memory[round(i * (len(watch.memory) - 1) / 10)] for i in range(1, 11)]
    curve = [
        {"share": (i + 1) / 10, "seconds": round(at), **{k: round(v) for k, v in use.items()}}
        for i, (at, use) in enumerate(points)
    ]
    return {"rows": answered, "rows_per_s": round(answered / wall_s), "curve_mb": curve}


def faults(options: argparse.Namespace) -> dict[str, Any]:
    """Time per answer with a tenth of the calls failing in mixed ways, over the clean time."""
    from collections import Counter

    found: dict[str, Any] = {}
    with start_mock() as mock, tempfile.TemporaryDirectory() as folder:
        for name in ("clean", "faulty"):
            share = dict.fromkeys(MIXED, 0.1 / len(MIXED)) if name == "faulty" else {}
            mock.configure(
                MockConfig(
                    latency=Latency(kind="lognormal", mean_s=0.2), faults=Faults(share=share, hint="retry-after-ms", wait_s=0.5)
                )
            )
            took_s, reasons = asyncio.run(
                _through_worker(model_at(mock, limits=Limits(concurrency=64)), Path(folder) / name, options.rows, name[0])
            )
            answered = reasons.pop("None", 0)
            found[name] = {
                "seconds": round(took_s, 2),
                "answered": answered,
                "dropped": dict(Counter(reasons)),
                "ms_per_answer": round(1000 * took_s / answered, 3),
            }
        found["calls"] = mock.stats()["requests"]
    found["ratio"] = round(found["faulty"]["ms_per_answer"] / found["clean"]["ms_per_answer"], 3)
    return found


async def _through_worker(model: ModelConfig, folder: Path, count: int, job: str) -> tuple[float, dict[str, int]]:
    from collections import Counter

    from llm.harness import open_worker
    from tunemill.llm.retry import RetryPolicy

    rows = rows_for(count, job)
    async with open_worker(folder, model, policy=RetryPolicy()) as worker:
        began = time.monotonic()
        done = await asyncio.gather(*(worker.call(rows[i : i + 16]) for i in range(0, count, 16)))
        took_s = time.monotonic() - began
    return took_s, dict(Counter(str(row["reason"]) for block in done for row in block))


def peer(options: argparse.Namespace) -> dict[str, Any]:
    """A peer at a request limit, in as many processes as callers; time counts from its first call."""
    limit = Limit(rpm=options.rpm)
    python = options.python or sys.executable
    count = int(options.rpm / 60 * (options.seconds + 20) / options.callers) + 20
    config = MockConfig(limits={"*": limit}, latency=Latency(kind="lognormal", mean_s=0.3))
    with start_mock(config) as mock, tempfile.TemporaryFile() as log:
        command = [python, str(ROOT / "fanout_peers.py"), options.peer, mock.url, str(options.rpm), str(count)]
        running = [subprocess.Popen([*command, str(i)], stdout=log, stderr=log) for i in range(options.callers)]
        deadline = time.monotonic() + options.seconds + START_S
        first = None
        while any(process.poll() is None for process in running) and time.monotonic() < deadline:
            time.sleep(0.5)
            first = first or (time.monotonic() if mock.stats().get("answered") else None)
            if first is not None and time.monotonic() - first > options.seconds + 2:
                break
        for process in running:
            process.kill()
            process.wait()
        if first is None:
            log.seek(0)
            raise SystemExit(
                f"{options.peer} made no call within {options.seconds + START_S:.0f} s: {log.read().decode()[-4000:]}"
            )
        found = steady(mock, options.seconds)
        everything = mock.stats()
    found.pop("ids")
    use = found["answered"] / (options.rpm / 60 * found["seconds"])
    share = everything.get("throttled", 0) / max(everything["requests"], 1)
    return {"use": round(use, 4), **found, "throttled_of_all_calls": round(share, 4)}


SETTINGS = {
    "limits": ("rpm", "tpm", "callers", "jobs", "seconds"),
    "overhead": ("rows", "rounds"),
    "memory": ("rows",),
    "faults": ("rows",),
    "peer": ("peer", "rpm", "callers", "seconds"),
}


def record(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Add one line to the results."""
    settings = {"what": options.what} | {name: getattr(options, name) for name in SETTINGS[options.what]}
    line = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "settings": settings, "found": found}
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line, indent=1))


def main() -> None:
    """Parse, measure, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("limits", "suite", "overhead", "memory", "faults", "peer", "report"))
    parser.add_argument("--rpm", type=float, default=600)
    parser.add_argument("--tpm", type=float)
    parser.add_argument("--callers", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=75)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5, help="of overhead; each measures every layer once")
    parser.add_argument("--peer", choices=("bucket", "curator", "raydata"))
    parser.add_argument("--python", help="interpreter that has the peer installed")
    parser.add_argument("--lock", help="file to lock while a setting of the suite is measured")
    parser.add_argument("--only", help="numbers of the suite's settings, from 0: 0,4,7")
    options = parser.parse_args()
    if options.what == "suite":
        suite(options)
        return
    if options.what == "report":
        from fanout_report import write_report

        write_report(RESULTS, RESULTS.with_suffix(".md"), f"{platform.machine()}, {os.cpu_count()} cores")
        return
    record(
        options, {"limits": limits, "overhead": overhead, "memory": memory, "faults": faults, "peer": peer}[options.what](options)
    )


if __name__ == "__main__":
    main()
