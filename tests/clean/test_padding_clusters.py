"""The rule of the wanted segment, on vectors made for the purpose."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunemill.clean.padding_clusters import Choice, Clusters, choose, fit_clusters


def segments(answers: int, *, topics: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each answer has one varied segment about its topic and two stock phrases; vectors, answer numbers, kind (0 is wanted)."""
    random = np.random.default_rng(seed)
    axes = np.eye(16, dtype=np.float32)
    rows, owners, kinds = [], [], []
    for answer in range(answers):
        about = axes[0] + 0.6 * axes[3 + answer % topics] + 0.15 * random.standard_normal(16)
        opening, closing = (axes[1 + k] + 0.03 * random.standard_normal(16) for k in (0, 1))
        for kind, vector in enumerate((about, opening, closing)):
            rows.append(vector / np.linalg.norm(vector))
            owners.append(answer)
            kinds.append(kind)
    return np.array(rows, dtype=np.float32), np.array(owners), np.array(kinds)


def fitted(vectors: np.ndarray, owners: np.ndarray, hits: np.ndarray | None = None, clusters: int | None = None) -> Clusters:
    """Clusters of the segments."""
    padding = np.zeros(len(vectors), dtype=bool) if hits is None else hits
    return fit_clusters(vectors, owners, padding, dims=5, clusters=clusters, coverage=0.9, seed=0)


def test_target_is_what_the_answers_are_about_even_without_patterns() -> None:
    """Stock phrases cover every answer too, but the varied cluster that does so is the target."""
    vectors, owners, kinds = segments(60)
    clusters = fitted(vectors, owners)
    labels, distances = clusters.assign(clusters.project(vectors))
    assert set(labels[kinds == 0]) == {clusters.target}
    assert clusters.target not in labels[kinds > 0]
    assert np.all(distances[kinds == 0] < distances[kinds == 1].min())


def test_topics_stay_in_one_target() -> None:
    """As many clusters are taken as leave one that covers nearly all answers: padding apart, topics together."""
    vectors, owners, _ = segments(60)
    clusters = fitted(vectors, owners)
    assert 3 <= len(clusters.centres) <= 5
    assert clusters.target is not None
    assert clusters.covered[clusters.target] >= 0.9


def test_without_padding_all_segments_are_candidates() -> None:
    """Answers of one segment about many things have no cluster that covers most of them."""
    vectors, owners, kinds = segments(60)
    clusters = fitted(vectors[kinds == 0], owners[kinds == 0])
    assert clusters.target is None


def test_cluster_of_known_padding_is_never_the_target() -> None:
    """Patterns overrule variety: the cluster that they hit is padding, whatever it covers."""
    vectors, owners, kinds = segments(60)
    clusters = fitted(vectors, owners, hits=kinds == 0, clusters=3)
    labels, _ = clusters.assign(clusters.project(vectors))
    assert clusters.target not in set(labels[kinds == 0])


def test_fit_is_the_same_again() -> None:
    """The same segments and seed give the same clusters to the last bit."""
    vectors, owners, _ = segments(40)
    first, second = fitted(vectors, owners), fitted(vectors, owners)
    assert first.target == second.target
    np.testing.assert_array_equal(first.centres, second.centres)
    np.testing.assert_array_equal(first.components, second.components)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_few_segments_are_no_trouble(count: int) -> None:
    """A handful of segments, or the same one many times, still gives clusters that choose something."""
    vectors, owners, _ = segments(2)
    for some in (vectors[:count], np.repeat(vectors[:1], count, axis=0)):
        clusters = fitted(some, owners[:count])
        labels, distances = clusters.assign(clusters.project(some))
        assert choose(list(labels), list(distances), [False] * count, clusters).index is not None


TARGET = Clusters(
    mean=np.zeros(2, np.float32),
    components=np.eye(2, dtype=np.float32),
    centres=np.eye(2, dtype=np.float32),
    target=1,
    reach=0.5,
    explained_variance=(1.0,),
    covered=(0.5, 1.0),
)


@pytest.mark.parametrize(
    ("labels", "distances", "padding", "choice"),
    [
        ([0, 1, 0], [9, 3, 1], [False, True, False], Choice(1, None)),
        ([1, 1, 0], [3, 2, 1], [False, False, False], Choice(1, None)),
        ([1, 1, 0], [3, 2, 1], [False, True, False], Choice(0, None)),
        ([1, 1, 0], [3, 2, 1], [True, True, False], Choice(None, "keyword")),
        ([0, 0], [0.4, 0.3], [False, True], Choice(0, None)),
        ([0, 0], [0.6, 0.3], [False, True], Choice(None, "far_from_centre")),
        ([0, 0], [0.1, 0.1], [True, True], Choice(None, "padding")),
        ([1, 1], [0.1, 0.1], [False, False], Choice(0, None)),
    ],
    ids=[
        "only one there",
        "nearest",
        "nearest no pattern hits",
        "all hit",
        "within reach",
        "beyond reach",
        "padding only",
        "tie",
    ],
)
def test_rule_of_the_wanted_segment(labels: list[int], distances: list[float], padding: list[bool], choice: Choice) -> None:
    """One in the target stays; of several the nearest that no pattern hits; else what lies within reach; else a reason."""
    assert choose(labels, distances, padding, TARGET) == choice


def test_without_a_target_the_first_that_no_pattern_hits_is_kept() -> None:
    """Answers that are about many things keep their opening, not what lies near a meaningless mean."""
    anything = dataclasses.replace(TARGET, target=None, reach=float("inf"))
    assert choose([0, 1, 0], [0.9, 0.8, 0.1], [True, False, False], anything) == Choice(1, None)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0, 2), st.booleans()), min_size=1, max_size=6))
def test_every_answer_gets_one_segment_or_a_reason(rows: list[tuple[int, float, bool]]) -> None:
    """Whatever the segments, exactly one of segment and reason is given."""
    labels, distances, padding = (list(column) for column in zip(*rows, strict=True))
    choice = choose(labels, distances, padding, TARGET)
    assert (choice.index is None) != (choice.reason is None)
