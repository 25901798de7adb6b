"""tunemill submit: hand a run to a Ray cluster as a Ray Job, and follow it."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from tunemill.cli import Command, Options, parse, run_main
from tunemill.config import build
from tunemill.errors import ConfigError, RunFailed
from tunemill.pipeline import PipelineConfig
from tunemill.store import typed_cwd

USAGE = """
usage: tunemill submit --config FILE --address http://HEAD:8265 [--generate.rows 500 ...]

The folder where you type this is shipped to the cluster; everything relative in the configuration is
relative to it. Keys are read from the environment of the cluster's nodes and are never shipped.
On several nodes let run.output lie on storage that all of them reach (s3://..., a shared folder).
"""
EXCLUDED = [".git/", ".venv/", "runs/", "node_modules/", "**/__pycache__/", ".mypy_cache/", ".ruff_cache/", "benchmarks/results/"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubmitOptions(Options):
    """Flags of ``tunemill submit``."""

    address: str = "http://127.0.0.1:8265"
    """Address of the cluster's job server; a token in RAY_AUTH_TOKEN or ~/.ray/auth_token is sent along."""
    no_wait: bool = False
    """Return once the job is accepted instead of following its log."""


COMMAND = Command(job="submit", usage=USAGE, config_type=PipelineConfig, options_type=SubmitOptions)


def run(argv: Sequence[str]) -> None:
    """Submit ``tunemill run`` with the same flags."""
    parsed = parse(COMMAND, argv)
    options: SubmitOptions = parsed.options
    if options.config is None:
        raise ConfigError("tunemill submit: --config is missing; name the YAML file of the run")
    build(PipelineConfig, parsed.values, parsed.where)
    client = _client(options.address)
    passed = [word for word in argv if word != "--no-wait"]
    passed = _without(passed, "--address")
    script = ["python", "jobs/pipeline.py"] if Path("jobs/pipeline.py").exists() else ["tunemill", "run"]
    job = client.submit_job(
        entrypoint=shlex.join([*script, *passed]),
        runtime_env={
            "working_dir": os.getcwd(),
            "excludes": EXCLUDED,
            "env_vars": {"TUNEMILL_CWD": typed_cwd(), "PYTHONPATH": "lib"},
        },
    )
    sys.stdout.write(f"{job}\n")
    if not options.no_wait:
        _follow(client, job)


def _client(address: str):  # type: ignore[no-untyped-def]
    # `ray start` asks for a token as soon as this user has one, but a client sends it only when told to.
    if os.environ.get("RAY_AUTH_TOKEN") or Path("~/.ray/auth_token").expanduser().exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, AuthenticationError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"tunemill submit: no Ray job server at {address} ({first}); start one with: ray start --head"
        ) from error


def _without(words: Sequence[str], flag: str) -> list[str]:
    kept: list[str] = []
    skip = False
    for word in words:
        if skip or word == flag:
            skip = word == flag
            continue
        if not word.startswith(f"{flag}="):
            kept.append(word)
    return kept


def _follow(client, job: str) -> None:  # type: ignore[no-untyped-def]
    import asyncio

    async def tail() -> None:
        async for lines in client.tail_job_logs(job):
            sys.stdout.write(lines)
            sys.stdout.flush()

    asyncio.run(tail())
    status = str(client.get_job_status(job))
    if status != "SUCCEEDED":
        raise RunFailed(f"job {job} ended as {status.lower()}; its log is above, and the same command goes on from what was kept")


if __name__ == "__main__":
    run_main(run, sys.argv[1:], "submit")
