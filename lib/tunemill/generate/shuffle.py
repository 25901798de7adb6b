"""Random order that can be asked at any place: a seeded permutation of 0..size-1, one number at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

__all__ = ["permuted", "shuffled"]

T = TypeVar("T")

_ROUNDS = 6


def permuted(index: int, size: int, key: str) -> int:
    """The place of ``index`` in the permutation of ``range(size)`` that belongs to ``key``.

    A Feistel network on the next even number of bits, walked until it lands inside the range
    (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002), so no table of ``size`` is held.
    """
    half = max((max(size - 1, 1).bit_length() + 1) // 2, 1)
    mask = (1 << half) - 1
    secret = hashlib.blake2b(key.encode(), digest_size=32).digest()
    value = index
    while True:
        left, right = value >> half, value & mask
        for step in range(_ROUNDS):
            left, right = right, left ^ (_mixed(right, step, half, secret) & mask)
        value = (left << half) | right
        if value < size:
            return value


def _mixed(value: int, step: int, bits: int, secret: bytes) -> int:
    data = step.to_bytes(1, "big") + value.to_bytes(bits // 8 + 1, "big")
    return int.from_bytes(hashlib.blake2b(data, key=secret, digest_size=min(bits // 8 + 8, 64)).digest(), "big")


def shuffled(items: Sequence[T], key: str) -> list[T]:
    """The items in the random order that belongs to ``key``."""
    return [items[permuted(i, len(items), key)] for i in range(len(items))]
