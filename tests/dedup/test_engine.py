"""The pair engine against plain brute force in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunemill.dedup.cells import Cells, assign
from tunemill.dedup.engine import all_pairs
from tunemill.dedup.join import join
from tunemill.dedup.pairs import Pairs, Vectors
from tunemill.dedup.plan import plan_search
from tunemill.dedup.sketch import fit

from .corpora import CORPUS, corpus

THRESHOLD = st.sampled_from([0.2, 0.5, 0.8, 0.9, 0.95, 0.99, 0.9999, 1.0])


def brute_force(x: np.ndarray, threshold: float) -> dict[tuple[int, int], float]:
    """Every pair by one float64 product."""
    wide = x.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    scores = np.round(wide @ wide.T, 9)
    a, b = np.nonzero(np.triu(scores >= threshold, 1))
    return {(int(i), int(j)): float(scores[i, j]) for i, j in zip(a, b, strict=True)}


def same(found: Pairs, expected: dict[tuple[int, int], float]) -> None:
    """The same pairs, in order, each once, with the same similarity."""
    assert list(zip(found.a.tolist(), found.b.tolist(), strict=True)) == sorted(expected)
    assert np.allclose(found.similarity, [expected[key] for key in sorted(expected)], atol=2e-9)


@settings(max_examples=60, deadline=None)
@given(shape=CORPUS, threshold=THRESHOLD, cells=st.sampled_from([0, 1, 3, 8, 20]), width=st.integers(1, 12))
def test_every_plan_finds_exactly_the_pairs_of_brute_force(shape: dict, threshold: float, cells: int, width: int) -> None:
    """Whatever the number of cells and the sketch width, the pair set is that of brute force."""
    x = corpus(**shape)
    vectors = Vectors.of(x)
    plan = plan_search(vectors, [threshold], width=min(width, x.shape[1]), cells=min(cells, len(x)))
    same(all_pairs(vectors, threshold, plan=plan, threads=1), brute_force(x, threshold))


@settings(max_examples=25, deadline=None)
@given(shape=CORPUS, threshold=THRESHOLD)
def test_the_planned_search_finds_exactly_the_pairs_of_brute_force(shape: dict, threshold: float) -> None:
    """With the parameters that the cost model picks, the pair set is that of brute force."""
    x = corpus(**shape)
    same(all_pairs(x, threshold, threads=2), brute_force(x, threshold))


@settings(max_examples=25, deadline=None)
@given(shape=CORPUS, threshold=THRESHOLD, cells=st.sampled_from([0, 4, 16]), bits=st.integers(1, 3))
def test_rows_that_share_a_bit_of_the_code_are_not_compared(shape: dict, threshold: float, cells: int, bits: int) -> None:
    """Pairs within one quiet class are left out and all others stay."""
    x = corpus(**shape)
    code = np.random.default_rng(shape["seed"]).integers(0, bits + 1, len(x)).astype(np.uint8)
    vectors = Vectors.of(x)
    plan = plan_search(vectors, [threshold], cells=min(cells, len(x)))
    expected = {key: value for key, value in brute_force(x, threshold).items() if not code[key[0]] & code[key[1]]}
    same(all_pairs(vectors, threshold, plan=plan, code=code, threads=1), expected)


@settings(max_examples=25, deadline=None)
@given(shape=CORPUS, threshold=st.sampled_from([0.3, 0.8, 0.95]), cells=st.sampled_from([0, 6]))
def test_several_text_columns_all_have_to_be_close(shape: dict, threshold: float, cells: int) -> None:
    """With two column groups a pair needs both at the threshold, and its similarity is the smaller one."""
    first, second = corpus(**shape), corpus(**{**shape, "seed": shape["seed"] + 1, "dims": 7})
    vectors = Vectors.of(np.hstack([first, second]), [first.shape[1], 7])
    one, two = brute_force(first, threshold), brute_force(second, threshold)
    expected = {key: min(one[key], two[key]) for key in one.keys() & two.keys()}
    plan = plan_search(vectors, [threshold, threshold], cells=min(cells, len(first)))
    same(all_pairs(vectors, threshold, plan=plan, threads=1), expected)


def test_the_search_does_not_depend_on_which_cells_go_together() -> None:
    """Joining the cells in parts and uniting the parts gives the pairs of one join."""
    vectors = Vectors.of(corpus(rows=600, dims=16, centres=20, spread=0.3, copies=10, seed=1))
    plan = plan_search(vectors, [0.9], cells=12)
    sketches = plan.sketch.of(vectors.rows)
    layout = assign(sketches, plan.centroids, 0.9)
    whole = join(vectors, sketches, layout, [0.9])
    parts = [join(vectors, sketches, layout, [0.9], cells=range(start, 12, 3)) for start in range(3)]
    united = {(a, b) for part in parts for a, b in zip(part.a.tolist(), part.b.tolist(), strict=True)}
    assert united == set(zip(whole.a.tolist(), whole.b.tolist(), strict=True))
    assert len(whole) > 0


@pytest.mark.parametrize("threshold", [0.5, 0.9, 1.0])
def test_all_rows_identical_make_every_pair(threshold: float) -> None:
    """A corpus of one repeated row yields all pairs, each with similarity 1."""
    pairs = all_pairs(np.tile(corpus(rows=1, dims=8, centres=1, spread=0.0, copies=0, seed=3), (50, 1)), threshold)
    assert len(pairs) == 50 * 49 // 2
    assert (pairs.similarity == 1.0).all()


def test_one_row_has_no_pairs() -> None:
    """A corpus of one row is its own survivor."""
    assert len(all_pairs(corpus(rows=1, dims=8, centres=1, spread=0.0, copies=0, seed=3), 0.5)) == 0


@settings(max_examples=25, deadline=None)
@given(shape=CORPUS, width=st.integers(1, 12))
def test_the_sketch_is_an_upper_bound_of_the_cosine(shape: dict, width: int) -> None:
    """No score of two sketches lies below the rows' cosine."""
    x = corpus(**shape)
    sketches = fit(x).narrowed(min(width, x.shape[1])).of(x).astype(np.float64)
    wide = x.astype(np.float64)
    assert (sketches @ sketches.T >= wide @ wide.T - 1e-5).all()


def test_a_visitor_stands_in_every_cell_whose_bisector_is_near() -> None:
    """Each row has one home, and no row visits its own home."""
    x = corpus(rows=400, dims=12, centres=9, spread=0.4, copies=0, seed=5)
    plan = plan_search(Vectors.of(x), [0.8], cells=9)
    layout: Cells = assign(plan.sketch.of(x), plan.centroids, 0.8)
    assert np.array_equal(np.sort(layout.home_rows), np.arange(400))
    for cell in range(layout.count):
        assert not set(layout.home(cell).tolist()) & set(layout.visitors(cell).tolist())
