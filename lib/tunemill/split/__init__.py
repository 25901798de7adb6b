"""Rows to train, validation and test, without near-duplicates across the border."""
