"""Chance that does not depend on the order of arrival: every draw comes from seed, body and attempt."""

from __future__ import annotations

import hashlib
import math
import statistics

from mock_provider.config import Faults, Latency

__all__ = ["draw", "latency_s", "pick_fault"]

_NORMAL = statistics.NormalDist()


def draw(seed: int, what: str, body_hash: str, attempt: int) -> float:
    """A number in (0, 1)."""
    digest = hashlib.blake2b(f"{seed}|{what}|{body_hash}|{attempt}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") + 0.5) / 2**64


def pick_fault(faults: Faults, seed: int, body_hash: str, attempt: int, arrival: int) -> str | None:
    """The fault of this call, if any: by script, by attempt, by chance."""
    if arrival < len(faults.script):
        return faults.script[arrival]
    if attempt < len(faults.each):
        return faults.each[attempt]
    if not faults.share:
        return None
    number = draw(seed, "fault", body_hash, attempt)
    for name, share in faults.share.items():
        if number < share:
            return name
        number -= share
    return None


def latency_s(latency: Latency, seed: int, body_hash: str, attempt: int) -> float:
    """Seconds until this call is answered."""
    if latency.kind == "constant":
        return latency.mean_s
    number = draw(seed, "latency", body_hash, attempt)
    if latency.kind == "slow_tail":
        return latency.tail_s if number < latency.tail_share else latency.mean_s
    return latency.mean_s * math.exp(latency.sigma * _NORMAL.inv_cdf(number))
