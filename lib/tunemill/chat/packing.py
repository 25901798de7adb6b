"""Packing: several examples in one forward pass of at most ``capacity`` tokens, so that nothing is spent on padding.

Best-fit decreasing: the longest example first, each into the fullest pack it still fits, which stays
within 11/9 of the fewest packs possible (Johnson 1974). Pure and deterministic. ``finetune`` packs the
rows of one optimiser step at a time: packing then never changes which rows a step learns from.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["pack"]


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
