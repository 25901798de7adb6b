"""Vectors -> pairs -> survivors: near-duplicates found exactly, removed without leaving orphans."""
