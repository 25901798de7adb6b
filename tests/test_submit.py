"""A run handed to a Ray cluster as a job ends like one typed in the terminal."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """Address of the job server of a Ray head node of this test's own."""
    gcs, dashboard, agent = _free_ports(3)
    # Paths of sockets have a length limit that pytest's folders exceed.
    scratch = Path("/tmp") / f"ray-submit-{dashboard}"
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(scratch)}
    command = [str(BIN / "ray"), "start", "--head", "--num-cpus=2", "--node-ip-address=127.0.0.1", f"--port={gcs}"]
    command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}", f"--temp-dir={scratch}", "--block"]
    node = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield f"http://127.0.0.1:{dashboard}"
    node.terminate()
    node.wait(60)
    shutil.rmtree(scratch, ignore_errors=True)


def _ready(address: str) -> bool:
    """True once the cluster's agent takes jobs; Ray has no event for this, so the test job is offered until it is taken."""
    code = (
        "import sys, time\n"
        "from ray.job_submission import JobSubmissionClient\n"
        "for _ in range(240):\n"
        "    try:\n"
        "        JobSubmissionClient(sys.argv[1]).submit_job(entrypoint='true')\n"
        "        sys.exit(0)\n"
        "    except (ConnectionError, RuntimeError):\n"
        "        time.sleep(0.5)\n"
        "sys.exit(1)\n"
    )
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    return subprocess.run([sys.executable, "-c", code, address], env=environment, timeout=200, check=False).returncode == 0


@pytest.mark.timeout(500)
def test_a_submitted_run_writes_where_the_command_was_typed(cluster: str, tmp_path: Path) -> None:
    """Relative paths of the configuration mean the submitter's folder, and the job's end is the command's exit code."""
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"text": f"row {i}", "label": "ab"[i % 2]}) + "\n" for i in range(20))
    )
    (tmp_path / "run.yaml").write_text("run: {output: out, until: split}\ninput: {path: rows.jsonl}\n")
    assert _ready(cluster)
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    command = [str(BIN / "tunemill"), "submit", "--config", "run.yaml", "--address", cluster]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    manifest = json.loads((tmp_path / "out" / "split" / "manifest.json").read_text())
    assert manifest["rows_kept"] == 20
    assert (tmp_path / "out" / "report.html").exists()


def test_an_address_without_a_cluster_is_one_line(tmp_path: Path) -> None:
    """No server at the address: exit code 2, and the line says how to start one."""
    (tmp_path / "run.yaml").write_text("input: {path: rows.jsonl}\n")
    command = [str(BIN / "tunemill"), "submit", "--config", "run.yaml", "--address", f"http://127.0.0.1:{_free_ports(1)[0]}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert "ray start --head" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
