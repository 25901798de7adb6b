"""Peers for benchmarks/fanout.py, one process of one of them: ``fanout_peers.py NAME URL RPM ROWS NUMBER``.

``bucket`` is a token bucket for each process, in the spirit of the parallel script of OpenAI's cookbook:
capacity of one minute, full at the start, usage counted when a call is sent, 15 s pause after a 429.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import tempfile
import time


def prompt_of(number: str, row: int) -> str:
    """Prompts of the same length as ours, different for each process."""
    return f"[[p{number}-{row}]] Write a sentence about topic {row}."


async def bucket(url: str, rpm: float, rows: int, number: str) -> None:
    """Requests from a bucket of this process's own."""
    import aiohttp

    level, at, paused = rpm, time.monotonic(), 0.0
    waiting = [(row, 5) for row in range(rows)]
    flying: set[asyncio.Task[None]] = set()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def call(row: int, left: int) -> None:
            nonlocal paused
            body = {"model": "mock-1", "max_tokens": 50, "messages": [{"role": "user", "content": prompt_of(number, row)}]}
            async with session.post(
                f"{url}/v1/chat/completions", json=body, headers={"authorization": "Bearer mock-secret-key"}
            ) as response:
                await response.read()
                if response.status == 429:
                    paused = time.monotonic() + 15
                if response.status != 200 and left:
                    waiting.append((row, left - 1))

        while waiting or flying:
            now = time.monotonic()
            level, at = min(rpm, level + (now - at) * rpm / 60), now
            if waiting and level >= 1 and now >= paused:
                level -= 1
                task = asyncio.create_task(call(*waiting.pop(0)))
                flying.add(task)
                task.add_done_callback(flying.discard)
            await asyncio.sleep(0.001)


def curator(url: str, rpm: float, rows: int, number: str) -> None:
    """bespokelabs-curator's online backend."""
    os.environ |= {"OPENAI_API_KEY": "mock-secret-key", "CURATOR_CACHE_DIR": tempfile.mkdtemp(), "TELEMETRY_ENABLED": "false"}
    os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "CURATOR_DISABLE_RICH_DISPLAY": "1"}
    # it counts tokens with an encoding that tiktoken would fetch; litellm, which it needs anyway, brings the same file along
    spec = importlib.util.find_spec("litellm")
    places = list(spec.submodule_search_locations or []) if spec else []
    os.environ["TIKTOKEN_CACHE_DIR"] = os.path.join(places[0], "litellm_core_utils", "tokenizers") if places else ""
    from bespokelabs import curator as library

    class Ask(library.LLM):
        """One prompt for each row."""

        def prompt(self, row: dict[str, str]) -> str:
            """The prompt."""
            return row["prompt"]

        def parse(self, row: dict[str, str], response: str) -> dict[str, str]:
            """The row with its text."""
            return {**row, "text": response}

    model = Ask(
        model_name="gpt-4o-mini",
        backend="openai",
        backend_params={
            "base_url": f"{url}/v1",
            "max_requests_per_minute": int(rpm),
            "max_tokens_per_minute": 100_000_000,
            "max_concurrent_requests": 256,
        },
        generation_params={"max_tokens": 50},
    )
    model([{"prompt": prompt_of(number, row)} for row in range(rows)])


def raydata(url: str, rpm: float, rows: int, number: str) -> None:
    """Ray Data LLM's HTTP processor with its own qps limit."""
    import ray.data
    from ray.data.llm import HttpRequestProcessorConfig, build_processor

    ray.init(address="local", num_cpus=4, include_dashboard=False)
    config = HttpRequestProcessorConfig(
        url=f"{url}/v1/chat/completions",
        headers={"Authorization": "Bearer mock-secret-key"},
        qps=max(1, int(rpm / 60)),
        concurrency=4,
    )
    processor = build_processor(
        config,
        preprocess=lambda row: {
            "payload": {"model": "mock-1", "max_tokens": 50, "messages": [{"role": "user", "content": row["prompt"]}]}
        },
        postprocess=lambda row: {"text": str(row["http_response"])},
    )
    source = ray.data.from_items([{"prompt": prompt_of(number, row)} for row in range(rows)])
    processor(source).materialize()


if __name__ == "__main__":
    name, url, rpm, rows, number = sys.argv[1:6]
    if name == "bucket":
        asyncio.run(bucket(url, float(rpm), int(rows), number))
    else:
        {"curator": curator, "raydata": raydata}[name](url, float(rpm), int(rows), number)
