"""To come."""

from __future__ import annotations


def route(path: str) -> None:
    """Nobody."""
