"""Calls here and on Ray: the same answers, the same errors, and a plain word when a worker dies each time."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tunemill.dedup.tasks import Here, OnRay, Tasks
from tunemill.errors import DataError, RunFailed


@pytest.fixture(params=["here", "ray"])
def tasks(request: pytest.FixtureRequest, ray_session: None) -> Tasks:
    """Both kinds."""
    return Here() if request.param == "here" else OnRay(device="cpu")


def test_results_of_one_call_are_arguments_of_the_next(tasks: Tasks) -> None:
    """Handles arrive as values, and several results have a handle each."""

    # Inside of the test, so that they travel to the workers, which cannot import it.
    def added(a: int, b: int) -> int:
        return a + b

    def counted(end: int) -> Iterator[int]:
        yield from range(end)

    two = tasks.start(added, 1, 1)
    parts = tasks.start(counted, 3, returns=3)
    assert tasks.get([tasks.start(added, two, parts[2]), tasks.put(7)]) == [4, 7]
    assert tasks.all(added, [(two, 1), (two, 2)]) == [3, 4]
    assert tasks.get([tasks.first([two])]) == [2]


def test_errors_of_the_project_come_as_they_were_raised(tasks: Tasks) -> None:
    """One line, without the trace of the task."""

    def refused() -> None:
        raise DataError("row 'x' is bad")

    with pytest.raises(DataError, match=r"^row 'x' is bad$"):
        tasks.all(refused, [()])


def test_a_worker_that_dies_each_time_fails_the_run_in_words(ray_session: None) -> None:
    """Ray tries again, then the user is told what is kept and what to change."""

    def dies() -> None:
        os._exit(1)

    with pytest.raises(RunFailed, match=r"Finished shards are kept.*dedup\.memory_gb"):
        OnRay(device="cpu").all(dies, [()])
