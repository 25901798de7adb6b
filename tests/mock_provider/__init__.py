"""A strict mock of five LLM providers: a real HTTP server with its own limiters, latencies, faults and request log.

It shares no code with tunemill, so that a misreading of a wire format or of a limit cannot agree with itself.
`start_mock` runs it in a process of its own; ``python -m mock_provider --port 9000`` runs it by hand.
"""

from __future__ import annotations

from mock_provider.config import Faults, Latency, Limit, MockConfig
from mock_provider.handle import MockHandle, start_mock

__all__ = ["Faults", "Latency", "Limit", "MockConfig", "MockHandle", "start_mock"]
