"""Texts -> unit vectors, on this machine's models or an embedding API."""
