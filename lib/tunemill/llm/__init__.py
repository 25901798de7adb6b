"""One provider call, done right: wire request, limits, retries, journal, cost."""
