"""The wire formats of the mock, written from the providers' documentation."""

from __future__ import annotations

from mock_provider.formats.base import Format

__all__ = ["find_format"]


def find_format(path: str) -> tuple[Format, str, str] | None:
    """(format, model in the path or "", operation) for a request path; None where nobody serves it."""
    from mock_provider.formats import anthropic, azure, bedrock, gemini, openai

    for module in (openai, azure, anthropic, gemini, bedrock):
        found: tuple[Format, str, str] | None = module.route(path)
        if found is not None:
            return found
    return None
