"""Packing: several examples in one row of at most ``capacity`` tokens, so that nothing is spent on padding.

Best-fit decreasing: the longest example first, each into the fullest pack it still fits, which stays
within 11/9 of the fewest packs possible (Johnson 1974). Pure and deterministic; examples stay apart
in a pack through ``position_ids`` that begin at 0 for each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["collate", "fewest_packs", "pack", "pack_rows"]

Int = npt.NDArray[np.int64]
_IGNORE = -100


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of ``lengths`` in packs whose sums do not exceed ``capacity``.

    Every index comes exactly once; packs stand in the order in which they were opened, indices in a
    pack by falling length. O(n log capacity). Raises ValueError for a length below 1 or above ``capacity``.
    """
    for index, length in enumerate(lengths):
        if not 1 <= length <= capacity:
            raise ValueError(f"example {index} has {length} tokens, should be 1 to {capacity}")
    packs: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    rooms = _Rooms(capacity)
    # Stable, so that equal lengths keep their order and the same input always gives the same packs.
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        room = rooms.smallest(length)
        if room is None:
            packs.append([])
            number, room = len(packs) - 1, capacity
        else:
            waiting = by_room[room]
            number = waiting.pop()
            if not waiting:
                rooms.remove(room)
        packs[number].append(index)
        left = room - length
        if left:
            by_room.setdefault(left, []).append(number)
            rooms.add(left)
    return packs


def fewest_packs(lengths: Sequence[int], capacity: int) -> int:
    """A number of packs that no packing can go below: all tokens, or all examples longer than half a pack."""
    total = sum(lengths)
    large = sum(length > capacity / 2 for length in lengths)
    return max(-(-total // capacity), large)


class _Rooms:
    """A set of numbers 1..capacity that finds its smallest member >= x in O(log capacity).

    A segment tree over flags; node 1 is the root, leaves begin at ``_size``.
    """

    def __init__(self, capacity: int) -> None:
        self._size = 1 << (capacity + 1).bit_length()
        self._any = bytearray(2 * self._size)

    def add(self, number: int) -> None:
        node = number + self._size
        while node and not self._any[node]:
            self._any[node] = 1
            node //= 2

    def remove(self, number: int) -> None:
        node = number + self._size
        self._any[node] = 0
        node //= 2
        while node and not (self._any[2 * node] or self._any[2 * node + 1]):
            self._any[node] = 0
            node //= 2

    def smallest(self, number: int) -> int | None:
        node = number + self._size
        if self._any[node]:
            return number
        while node > 1:
            if node % 2 == 0 and self._any[node + 1]:
                node += 1
                while node < self._size:
                    node = 2 * node if self._any[2 * node] else 2 * node + 1
                return node - self._size
            node //= 2
        return None


def collate(examples: Sequence[Mapping[str, Any]], *, length: int | None = None, pad_id: int = 0) -> dict[str, npt.NDArray[Any]]:
    """One pack as arrays of shape [tokens]: ``input_ids``, ``position_ids``, ``labels`` (int64), ``loss_weights`` (float32).

    ``examples`` have ``input_ids`` and ``loss_weights``. ``position_ids`` begin at 0 for each example; the
    first token of each has weight 0 and label -100, since what stands before it belongs to another
    example. Labels are not shifted: as in transformers, the model shifts them. With ``length`` the pack is
    padded with ``pad_id``, weight 0, as an example of its own, so that no real token attends to it.
    """
    ids = [np.asarray(example["input_ids"], np.int64) for example in examples]
    weights = [np.array(example["loss_weights"], np.float32) for example in examples]
    for part in weights:
        part[:1] = 0.0
    total = sum(len(part) for part in ids)
    if length is not None and total > length:
        raise ValueError(f"a pack of {total} tokens does not fit in {length}")
    if length is not None and total < length:
        ids.append(np.full(length - total, pad_id, np.int64))
        weights.append(np.zeros(length - total, np.float32))
    input_ids = np.concatenate(ids)
    loss_weights = np.concatenate(weights)
    return {
        "input_ids": input_ids,
        "position_ids": np.concatenate([np.arange(len(part)) for part in ids]),
        "labels": np.where(loss_weights > 0, input_ids, _IGNORE),
        "loss_weights": loss_weights,
    }


def pack_rows(dataset: Any, capacity: int, *, window: int = 10_000) -> Any:
    """A lazy ``ray.data.Dataset`` of packs from one of template rows (``id, input_ids, loss_weights``).

    Each window of ``window`` rows, in order, is packed by itself, so that memory stays bounded and the packs
    depend on the rows' order alone, not on how they were cut into blocks. Columns: ``ids`` and, of at most
    ``capacity`` tokens, what :func:`collate` gives, without padding.
    """
    windows = dataset.select_columns(["id", "input_ids", "loss_weights"]).repartition(
        target_num_rows_per_block=window, strict=True
    )
    return windows.map_batches(_PackWindow(capacity), batch_size=None, batch_format="pyarrow", zero_copy_batch=True)


@dataclass(frozen=True)
class _PackWindow:
    capacity: int

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        packs = [[rows[index] for index in indices] for indices in pack([len(row["input_ids"]) for row in rows], self.capacity)]
        arrays = [collate(examples) for examples in packs]
        columns: dict[str, Any] = {
            "ids": pa.array([[str(row["id"]) for row in examples] for examples in packs], pa.list_(pa.string()))
        }
        for name, kind in (
            ("input_ids", pa.int32()),
            ("position_ids", pa.int32()),
            ("labels", pa.int32()),
            ("loss_weights", pa.float32()),
        ):
            columns[name] = pa.array([item[name] for item in arrays], pa.list_(kind))
        return pa.table(columns)
