"""Kills parts of a running job on a simulated cluster and checks what the journal promises.

Each round: a driver in its own process calls a mock through two worker nodes, a victim is killed with
SIGKILL at a random moment (a caller actor, a budget actor, the driver, or a whole node together with its
scratch folder), the driver is started again where it died, and the outcome is compared with what the mock
says was paid. The journal is a folder that outlives every victim, or a bucket of moto's S3 server.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from mock_provider import Latency, MockConfig, MockHandle, start_mock
from simulated_cluster import shut_down

KINDS = ("caller", "budget", "driver", "node")
CONCURRENCY = 8
ROWS = 160
WINDOW_S = 1.0
"""On an object store, answers that came within this time before a kill may be lost with their segment."""
BUCKET = "chaos"
_NAMES = {"caller": "ray::MapWorker", "budget": "ray::_BudgetActor"}


@dataclasses.dataclass
class Round:
    """What one kill led to."""

    kind: str
    seed: int
    killed_after: int
    in_flight: int
    counted_before: int
    journal: str = "disk"
    window: int = 0
    """Answers of the last segment window before the kill; none on a disk, where each counts when it is written."""
    seconds: float = 0.0
    rows: int = 0
    lost: int = 0
    paid_twice: int = 0
    unlisted: int = 0
    maybe_paid: int = 0

    @property
    def good(self) -> bool:
        """Every promise was kept."""
        return self.rows == ROWS and not self.lost and not self.unlisted and self.paid_twice <= CONCURRENCY + self.window


class Arena:
    """A cluster of a head and two worker nodes, with a mock, and moto's server where the journal is on an object store."""

    def __init__(self, folder: Path, journal: str = "disk") -> None:
        from ray.cluster_utils import Cluster

        self.folder, self.journal = folder, journal
        self.store = _object_store() if journal == "s3" else None
        os.environ["MOCK_KEY"] = "mock-secret-key"
        self.mock: MockHandle = start_mock(MockConfig(latency=Latency(kind="lognormal", mean_s=0.15)))
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 << 20}
        )
        self.nodes = [self.add_node(), self.add_node()]

    def add_node(self) -> Any:
        """A worker node with a scratch folder of its own."""
        scratch = self.folder / f"scratch-{random.randrange(1 << 32):08x}"
        scratch.mkdir()
        node = self.cluster.add_node(num_cpus=2, object_store_memory=100 << 20, env_vars={"TMPDIR": str(scratch)})
        node.scratch = scratch
        return node

    def close(self) -> None:
        """Stop everything that this started."""
        shut_down(self.cluster)
        self.mock.stop()
        if self.store is not None:
            self.store.stop()

    def play(self, kind: str, seed: int) -> Round:
        """One round."""
        draw, began = random.Random(seed), time.monotonic()
        home = self.folder / f"round-{kind}-{seed}"
        home.mkdir()
        before = self.mock.paid_prompts()
        driver = self.drive(home, seed)
        threshold = draw.randrange(10, ROWS - 40)
        paid_at_start = self.mock.stats().get("paid", 0)
        ended: deque[tuple[float, int]] = deque()
        pause_until = float("inf")
        while time.monotonic() < pause_until:
            if driver.poll() is not None:
                raise RuntimeError(f"the driver ended early: {(home / 'driver.log').read_text()[-3000:]}")
            stats, now = self.mock.stats(), time.monotonic()
            ended.append((now, stats.get("requests", 0) - stats["in_flight"]))
            while ended[0][0] < now - WINDOW_S:
                ended.popleft()
            if pause_until == float("inf") and stats.get("paid", 0) - paid_at_start >= threshold:
                pause_until = now + draw.random() * 0.2
            time.sleep(0.02)
        in_flight = stats["in_flight"]
        self.kill(kind, driver, draw)
        counted = counted_rows(home)
        if kind == "driver":
            driver = self.drive(home, seed)
        if driver.wait(timeout=240) != 0:
            raise RuntimeError(f"{kind} {seed}: the driver failed: {(home / 'driver.log').read_text()[-3000:]}")
        played = Round(kind=kind, seed=seed, killed_after=threshold, in_flight=in_flight, counted_before=len(counted))
        played.journal = self.journal
        played.window = ended[-1][1] - ended[0][1] if self.journal == "s3" else 0
        played.seconds = time.monotonic() - began
        return judged(played, home, counted, self.mock.paid_prompts() - before)

    def drive(self, home: Path, seed: int) -> subprocess.Popen[bytes]:
        """Start (again) the driver of a round."""
        journal = str(home / "journal") if self.store is None else f"s3://{BUCKET}/{home.name}"
        command = [sys.executable, "-m", "llm.chaos", self.cluster.address, str(home), self.mock.url, str(seed), journal]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "RAY_LOG_TO_DRIVER": "0"}
        with (home / "driver.log").open("ab") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def kill(self, kind: str, driver: subprocess.Popen[bytes], draw: random.Random) -> None:
        """SIGKILL the victim."""
        if kind == "driver":
            driver.kill()
            driver.wait()
            return
        if kind == "node":
            node = self.nodes.pop(draw.randrange(len(self.nodes)))
            for process in processes_of(node):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.cluster.remove_node(node, allow_graceful=False)
            shutil.rmtree(node.scratch)
            self.nodes.append(self.add_node())
            return
        # An actor that reserves no CPU may live on the head as well, and one that was just started has no title yet.
        deadline = time.monotonic() + 60
        victims: list[psutil.Process] = []
        while not victims and time.monotonic() < deadline:
            everywhere = [self.cluster.head_node, *self.nodes]
            victims = [p for node in everywhere for p in processes_of(node) if title(p).startswith(_NAMES[kind])]
        if not victims:
            raise RuntimeError(f"no process of a {kind} was found to kill")
        draw.choice(sorted(victims, key=lambda p: p.pid)).kill()


def judged(played: Round, home: Path, counted: dict[str, str], paid: Counter[str]) -> Round:
    """Compare rows, journal and what was paid."""
    final = json.loads((home / "final.json").read_text())
    twice = {prompt for prompt, times in paid.items() if times > 1}
    listed = {final["prompts"][key] for key in final["maybe_paid"]}
    played.rows = len(final["rows"])
    played.lost = sum(final["rows"].get(prompt) != text for prompt, text in counted.items())
    played.paid_twice = sum(times - 1 for times in paid.values() if times > 1)
    played.unlisted = len(twice - listed)
    played.maybe_paid = len(listed)
    return played


def _object_store() -> Any:
    """moto's S3 server with a bucket; this process and all that it starts are pointed to it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=BUCKET)
    return server


def processes_of(node: Any) -> list[psutil.Process]:
    """The raylet of a node and its workers."""
    found = []
    for kind in ("raylet",):
        for info in node.all_processes.get(kind, []):
            process = psutil.Process(info.process.pid)
            found += [process, *process.children(recursive=True)]
    return found


def title(process: psutil.Process) -> str:
    """The command line, as Ray sets it."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def counted_rows(home: Path) -> dict[str, str]:
    """Rows that the driver had received before the kill."""
    file = home / "counted.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    rows = {}
    for line in lines:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            rows[row["prompt_id"]] = row["text"]
    return rows


@contextlib.contextmanager
def arena(folder: Path, journal: str = "disk") -> Iterator[Arena]:
    """An arena that is taken down at the end."""
    made = Arena(folder, journal)
    try:
        yield made
    finally:
        made.close()


def main(address: str, home: Path, url: str, seed: int, journal: str) -> None:
    """The driver of a round: calls all rows and writes what it received as it comes."""
    import logging

    import ray
    import ray.data

    from tunemill.llm.caller import open_calls
    from tunemill.llm.config import Limits, ModelConfig, Params, Price
    from tunemill.progress import Progress

    ray.init(address=address, namespace="tunemill", log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    model = ModelConfig(
        name="m",
        provider="openai",
        model="mock-1",
        base_url=f"{url}/v1",
        api_key_env="MOCK_KEY",
        params=Params(max_tokens=50),
        limits=Limits(concurrency=CONCURRENCY),
        price=Price(input=1.0, output=2.0),
        timeout_s=20.0,
    )
    rows = [
        {"prompt_id": f"s{seed}-{i}", "model": "m", "prompt": f"[[s{seed}-{i}]] Say.", "system": None, "sample": 0}
        for i in range(ROWS)
    ]
    prompts: dict[str, str] = {}
    received: dict[str, str] = {}
    with open_calls(models=(model,), journal=journal, job=f"chaos-{seed}", progress=Progress(quiet=True), workers=2) as calls:
        source = ray.data.from_items(rows, override_num_blocks=ROWS // 8)
        with (home / "counted.jsonl").open("a") as counted:
            for batch in calls.rows(source).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for row in batch.to_pylist():
                    if row["reason"] is not None:
                        raise RuntimeError(f"dropped: {row}")
                    received[row["prompt_id"]] = row["text"]
                    prompts[row["request_id"]] = row["prompt_id"]
                    counted.write(json.dumps({"prompt_id": row["prompt_id"], "text": row["text"]}) + "\n")
                counted.flush()
    summary = calls.summary()
    maybe = sorted({intent.key for intent in summary.maybe_paid})
    (home / "final.json").write_text(json.dumps({"rows": received, "prompts": prompts, "maybe_paid": maybe}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5])
