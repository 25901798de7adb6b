"""Rows -> messages -> token ids and loss weights, proven against the model's own template; packing."""
