"""``python -m mock_provider --port 9000 --rpm 600 --latency 0.05 --log requests.jsonl``."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import signal
import sys

from mock_provider.config import Latency, Limit, from_json
from mock_provider.server import serve


async def main() -> None:
    """Serve until a signal or, if asked to, until stdin closes."""
    parser = argparse.ArgumentParser(prog="mock_provider", description="A strict mock of five LLM providers.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", help="append one JSON line for each request")
    parser.add_argument("--config", default="{}", help="MockConfig as JSON")
    parser.add_argument("--rpm", type=float, help="requests per minute for each model")
    parser.add_argument("--tpm", type=float, help="tokens per minute for each model")
    parser.add_argument("--latency", type=float, help="seconds until an answer")
    parser.add_argument("--until-stdin-closes", action="store_true")
    options = parser.parse_args()
    config = from_json(options.config)
    if options.rpm or options.tpm:
        config = dataclasses.replace(config, limits={"*": Limit(rpm=options.rpm, tpm=options.tpm)})
    if options.latency is not None:
        config = dataclasses.replace(config, latency=Latency(mean_s=options.latency))
    log = os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if options.log else None
    runner, port = await serve(config, port=options.port, log=log)
    sys.stdout.write(f"ready http://127.0.0.1:{port}\n")
    sys.stdout.flush()
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, done.set)
    if options.until_stdin_closes:
        loop.add_reader(sys.stdin.fileno(), lambda: os.read(sys.stdin.fileno(), 4096) or done.set())
    await done.wait()
    await runner.cleanup()


asyncio.run(main())
