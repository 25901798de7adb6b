"""Survivors: the greedy rule, its alternative, and what is left out of the pair list for hot groups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tunemill.dedup.engine import all_pairs
from tunemill.dedup.exact import collapse, normalised, text_key
from tunemill.dedup.graph import PairGraph
from tunemill.dedup.hot import find_hot, summarise
from tunemill.dedup.pairs import Pairs, Vectors
from tunemill.dedup.spread import Spread
from tunemill.dedup.survivors import rank_of
from tunemill.dedup.tasks import Here

from .corpora import CORPUS, corpus

GRAPH = st.tuples(st.integers(1, 60), st.integers(0, 200), st.integers(0, 2**16))


def random_pairs(n: int, edges: int, seed: int) -> tuple[Pairs, np.ndarray]:
    """Pairs of a random graph, and ranks."""
    rng = np.random.default_rng(seed)
    ends = rng.integers(0, n, (edges, 2))
    ends = np.unique(np.sort(ends[ends[:, 0] != ends[:, 1]], axis=1), axis=0)
    return Pairs(a=ends[:, 0], b=ends[:, 1], similarity=rng.random(len(ends))), rng.permutation(n)


def by_the_book(n: int, pairs: Pairs, rank: np.ndarray) -> set[int]:
    """The greedy rule as it is written down."""
    near: dict[int, set[int]] = {row: set() for row in range(n)}
    for a, b in zip(pairs.a.tolist(), pairs.b.tolist(), strict=True):
        near[a].add(b)
        near[b].add(a)
    kept: set[int] = set()
    for row in np.argsort(rank).tolist():
        if not near[row] & kept:
            kept.add(row)
    return kept


def in_parts(pairs: Pairs, rank: np.ndarray, parts: int) -> PairGraph:
    """The graph with its pairs dealt out over parts, some of them twice."""
    cards = np.array_split(np.random.default_rng(parts).permutation(len(pairs)), parts)
    hands = [np.unique(np.concatenate([card, np.arange(0, len(pairs), 7)])) for card in cards]
    dealt = [Pairs(a=pairs.a[hand], b=pairs.b[hand], similarity=pairs.similarity[hand]) for hand in hands]
    return PairGraph.of(Here(), dealt, rank)


@settings(max_examples=100, deadline=None)
@given(graph=GRAPH, parts=st.integers(1, 5), few=st.sampled_from([0, 3, 10**6]))
def test_greedy_keeps_a_row_unless_a_kept_row_of_higher_priority_is_near(
    graph: tuple[int, int, int], parts: int, few: int
) -> None:
    """The rule in rounds over any parts equals the plain one, leaves no orphan, and names the closest survivors above."""
    n = graph[0]
    pairs, rank = random_pairs(*graph)
    whole = in_parts(pairs, rank, parts)
    found = whole.greedy(few)
    assert set(np.flatnonzero(found.kept).tolist()) == by_the_book(n, pairs, rank)
    assert len(whole.orphans(found.kept)) == 0
    dropped = np.flatnonzero(~found.kept)
    assert found.kept[found.survivor[dropped]].all()
    assert (rank[found.survivor[dropped]] < rank[dropped]).all()
    for row in dropped.tolist():
        ends = [(pairs.a, pairs.b), (pairs.b, pairs.a)]
        near = [(s, o) for mine, other in ends for s, o in zip(pairs.similarity[mine == row], other[mine == row], strict=True)]
        above = [(similarity, -rank[other]) for similarity, other in near if found.kept[other] and rank[other] < rank[row]]
        assert (found.similarity[row], -rank[found.survivor[row]]) == max(above)


@pytest.mark.parametrize("few", [0, 10**6])
def test_greedy_decides_a_long_chain(few: int) -> None:
    """A path in order of priority keeps every second row, in rounds as in one go."""
    n = 501
    pairs = Pairs(a=np.arange(n - 1), b=np.arange(1, n), similarity=np.ones(n - 1))
    assert np.array_equal(np.flatnonzero(in_parts(pairs, np.arange(n), 3).greedy(few).kept), np.arange(0, n, 2))


@settings(max_examples=50, deadline=None)
@given(graph=GRAPH, parts=st.integers(1, 5))
def test_the_components_rule_keeps_the_best_row_of_each_component(graph: tuple[int, int, int], parts: int) -> None:
    """One row stays for each connected component, the one of highest priority."""
    pairs, rank = random_pairs(*graph)
    whole = in_parts(pairs, rank, parts)
    labels = whole.components()
    kept = whole.one_per_component(labels).kept
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        assert np.flatnonzero(kept[members]).tolist() == [int(rank[members].argmin())]
        assert label == members.min()
    assert (labels[pairs.a] == labels[pairs.b]).all()


@settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    shape=CORPUS,
    threshold=st.sampled_from([0.5, 0.8, 0.95, 1.0]),
    share=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    fixed=st.sampled_from([0.0, 0.4]),
)
def test_a_summary_of_hot_pairs_answers_like_the_full_list(shape: dict, threshold: float, share: float, fixed: float) -> None:
    """Survivors, groups and orphan counts are the same whichever rows are taken as hot."""
    x = corpus(**shape)
    rng = np.random.default_rng(shape["seed"])
    stays = rng.random(len(x)) < fixed
    hot = np.flatnonzero(rng.random(len(x)) < share)
    rank = rank_of(stays + rng.integers(0, 5, len(x)) / 10, np.arange(len(x)))
    vectors = Vectors.of(x)
    code = stays.astype(np.uint8)
    full = all_pairs(vectors, threshold, code=code, threads=1)
    code[hot] |= 2
    short = summarise(vectors.take(hot), hot, all_pairs(vectors, threshold, code=code, threads=1), rank, threshold, fixed=stays)
    assert set(zip(short.a, short.b, strict=True)) <= set(zip(full.a, full.b, strict=True))
    whole, part = PairGraph.here(full, rank), PairGraph.here(short, rank)
    expected, answer = whole.greedy(), part.greedy()
    assert np.array_equal(expected.kept, answer.kept)
    assert np.allclose(expected.similarity, answer.similarity, atol=1e-6, equal_nan=True)
    labels = whole.components()
    assert np.array_equal(labels, part.components())
    alone = whole.one_per_component(labels).kept
    assert np.array_equal(whole.orphans(alone), part.orphans(alone))


def test_hot_rows_are_chosen_so_that_few_pairs_are_left() -> None:
    """A mass of similar rows is found; rows apart from it are not."""
    rng = np.random.default_rng(0)
    mass = rng.normal(size=24) + 0.05 * rng.normal(size=(1500, 24))
    x = np.vstack([mass, rng.normal(size=(1500, 24))]).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    hot = find_hot(Spread.here(Vectors.of(x), 3), 0.95, 20_000)
    assert set(hot.tolist()) <= set(range(1500))
    assert len(hot) > 1400


def test_ranks_prefer_the_larger_score_and_then_the_smaller_id() -> None:
    """Ties in the score are broken by id."""
    assert rank_of(np.array([1.0, 2.0, 2.0]), np.array(["a", "c", "b"])).tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("one", "other"),
    [("Straße", "STRASSE"), ("ﬁne  day", "fine day"), (" שלום\u00a0עולם ", "שלום עולם"), ("café", "cafe\u0301"), ("ｱ", "ア")],
)
def test_texts_that_differ_in_form_only_have_one_key(one: str, other: str) -> None:
    """Case, whitespace and Unicode form do not make a text another one."""
    assert normalised(one) == normalised(other)
    assert text_key([one]) == text_key([other])


def test_keys_tell_apart_where_one_text_ends_and_the_next_begins() -> None:
    """Two columns are not the same as their texts joined."""
    assert text_key(["ab", "c"]) != text_key(["a", "bc"])
    assert text_key([None]) == text_key([""])


def test_the_row_of_highest_priority_stands_for_its_exact_duplicates() -> None:
    """Each row points at the best row with its key."""
    keys, rank = np.array([b"x", b"y", b"x", b"x"]), np.array([3, 0, 1, 2])
    assert collapse(keys, rank).tolist() == [2, 1, 2, 2]
