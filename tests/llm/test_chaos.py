"""kill -9 of every part of a job on a simulated cluster; twenty seeds of it are in benchmarks/chaos.py."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from llm.chaos import CONCURRENCY, ROWS, Arena, arena


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """One cluster for all rounds with one kind of journal."""
    before = dict(os.environ)
    with arena(tmp_path_factory.mktemp("chaos"), request.param) as made:
        yield made
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("cluster", "kind", "seed"),
    [("disk", "caller", 1), ("disk", "budget", 2), ("disk", "driver", 3), ("disk", "node", 4), ("s3", "driver", 3)],
    indirect=["cluster"],
)
def test_a_kill_loses_nothing_and_names_what_may_be_paid_twice(cluster: Arena, kind: str, seed: int) -> None:
    """After kill -9 every row is answered, counted answers stay, and calls paid twice were at risk and are listed."""
    played = cluster.play(kind, seed)
    assert played.rows == ROWS
    assert played.lost == 0
    assert played.paid_twice <= CONCURRENCY + played.window
    assert played.unlisted == 0
