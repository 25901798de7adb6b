"""Answer again from stored pairs: another threshold, rule or preference without another search."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tunemill.dedup.config import DedupConfig
from tunemill.dedup.pairs import Pairs, unique_pairs
from tunemill.dedup.tasks import Handle, Tasks
from tunemill.errors import ConfigError
from tunemill.store import Location, StageStore

__all__ = ["may_reuse", "stored_parts"]

_FREE = ("threshold", "prefer", "rule", "reuse_pairs", "pair_floor")


def may_reuse(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """True when ``new`` can be answered from the pairs of ``old``: nothing that the search depends on differs."""
    return bool(new.get("reuse_pairs")) and all(old.get(name) == value for name, value in new.items() if name not in _FREE)


def stored_parts(
    store: StageStore, config: DedupConfig, tasks: Tasks, ids: np.ndarray, stands_for: np.ndarray
) -> tuple[list[Handle], float]:
    """Handles of the pairs of the run that stands in this folder, and their floor. Raises ConfigError if they cannot answer."""
    manifest = store.read_manifest()
    if manifest is None or not store.committed("pairs"):
        raise ConfigError(f"dedup.reuse_pairs: {store.folder.url} holds no pairs of a finished run; run once without it")
    floor = float(manifest.details["pair_floor"])
    if config.threshold < floor:
        raise ConfigError(
            f"dedup.threshold is {config.threshold}: the stored pairs reach down to {floor}; use a value from {floor} to 1, "
            f"or search again with dedup.pair_floor {config.threshold}"
        )
    same = all(manifest.config.get(name) == getattr(config, name) for name in ("threshold", "prefer"))
    if manifest.details.get("engine", {}).get("hot_rows") and not same:
        raise ConfigError(
            "dedup.reuse_pairs: the pairs of hot groups were summarised for one threshold and preference; "
            "search again without it, or with a larger dedup.max_pairs"
        )
    names, stands = tasks.put(ids), tasks.put(stands_for)
    return [tasks.start(_stored, file, names, stands) for file in store.committed("pairs")], floor


def _stored(file: Location, ids: np.ndarray, stands_for: np.ndarray) -> Pairs:
    """A file's pairs by position, each end the row that now stands for its copies."""
    table = pq.read_table(file.path, filesystem=file.fs)
    a, b = (stands_for[np.searchsorted(ids, np.array(table[name].to_pylist(), ids.dtype))] for name in ("id_a", "id_b"))
    return unique_pairs(a, b, table["similarity"].to_numpy(), len(ids))
