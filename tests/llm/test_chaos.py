"""kill -9 of every part of a job on a simulated cluster; twenty seeds of it are in benchmarks/chaos.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llm.chaos import CONCURRENCY, ROWS, Arena, arena


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """One cluster for all rounds."""
    with arena(tmp_path_factory.mktemp("chaos")) as made:
        yield made


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("kind", "seed"), [("caller", 1), ("budget", 2), ("driver", 3), ("node", 4)])
def test_a_kill_loses_nothing_and_names_what_may_be_paid_twice(cluster: Arena, kind: str, seed: int) -> None:
    """After kill -9 every row is answered, counted answers stay, and calls paid twice were in flight and are listed."""
    played = cluster.play(kind, seed)
    assert played.rows == ROWS
    assert played.lost == 0
    assert played.paid_twice <= CONCURRENCY
    assert played.unlisted == 0
