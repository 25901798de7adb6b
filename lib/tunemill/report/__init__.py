"""One HTML page for a run."""
