"""The journal of paid calls: intents before they are sent, raw responses before they count."""

from __future__ import annotations

from tunemill.llm.journal.base import Entry, Journal, JournalReader, JournalWriter, OpenIntent, Summary, open_journal

__all__ = ["Entry", "Journal", "JournalReader", "JournalWriter", "OpenIntent", "Summary", "open_journal"]
