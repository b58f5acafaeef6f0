"""Scores against loops of plain Python."""

from __future__ import annotations

import multiprocessing
import os

import numpy as np
import pytest
from glm_oracle import F64, KINDS, block_of, csr, with_intercept

from gdmix.glm import scoring
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.scoring import score_block, score_fixed, score_random
from gdmix.glm.threads import map_threads, split_evenly

Models = dict[int, dict[int, float]]  # entity: {coordinate column: coefficient}


def naive(features: F64, entity: F64, models: Models) -> F64:
    scores = []
    for x, e in zip(features, entity, strict=True):
        model = models.get(int(e), {})
        scores.append(model.get(0, 0.0) + sum(model.get(1 + j, 0.0) * v for j, v in enumerate(x)))
    return np.array(scores)


def ragged(models: Models, n_entities: int) -> tuple[F64, F64, F64]:
    pairs = [sorted(models.get(e, {}).items()) for e in range(n_entities)]
    flat = [pair for model in pairs for pair in model]
    indptr = np.cumsum([0, *(len(model) for model in pairs)]).astype(np.int64)
    columns = np.array([c for c, _ in flat], np.uint32)
    return indptr, columns, np.array([v for _, v in flat], float)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_score_random(seed: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_ROWS_PER_TASK", 64)
    rng = np.random.default_rng(seed)
    n, d, n_entities = 300, 12, 20
    features = rng.normal(size=(n, d)) * (rng.random((n, d)) < 0.5)
    features = features.astype(np.float32).astype(float)
    models: Models = {}
    for e in range(n_entities):
        # Some entities have no model, some no intercept, most lack some of the columns.
        columns = np.flatnonzero(rng.random(d + 1) < rng.choice([0.0, 0.4, 1.0]))
        models[e] = dict(zip(columns.tolist(), rng.normal(size=columns.size), strict=True))
    entity = rng.integers(-1, n_entities, n)
    scores = score_random(csr(features, rng), entity, *ragged(models, n_entities), threads)
    np.testing.assert_allclose(scores, naive(features, entity, models), atol=1e-12)
    assert (scores[entity < 0] == 0.0).all()


def test_score_random_ignores_columns_no_model_has() -> None:
    design = csr(np.array([[1.0, 2.0, 4.0]]))
    indptr, columns = np.array([0, 2]), np.array([0, 2], np.uint32)
    scores = score_random(design, np.array([0]), indptr, columns, np.array([10.0, 3.0]))
    assert scores.tolist() == [10.0 + 2.0 * 3.0]
    nothing = np.empty(0, np.uint32), np.empty(0)
    assert score_random(design, np.array([0]), np.array([0, 0]), *nothing).tolist() == [0.0]


def test_score_random_finds_the_largest_column_number() -> None:
    last = 2**32 - 2
    design = CsrMatrix(
        np.array([0, 1]), np.array([last], np.uint32), np.ones(1, np.float32), last + 1
    )
    columns = np.array([0, last + 1], np.uint32)
    scores = score_random(design, np.array([0]), np.array([0, 2]), columns, np.array([1.0, 5.0]))
    assert scores.tolist() == [6.0]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("n", [0, 1, 500])
def test_score_fixed(n: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_ROWS_PER_TASK", 64)
    rng = np.random.default_rng(n)
    features = rng.normal(size=(n, 7)).astype(np.float32).astype(float)
    theta = rng.normal(size=8)
    scores = score_fixed(csr(features), theta, threads)
    np.testing.assert_allclose(scores, with_intercept(features, True) @ theta, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 3])
def test_score_block(threads: int) -> None:
    rng = np.random.default_rng(3)
    problems = [kind(rng, 0) for kind in KINDS.values()]
    block, _ = block_of(problems, rng)
    theta = rng.normal(size=int(block.coefficient_ptr[-1]))
    parts = np.split(theta, block.coefficient_ptr[1:-1])
    expected = [with_intercept(p.features, True) @ t for p, t in zip(problems, parts, strict=True)]
    np.testing.assert_allclose(
        score_block(block, theta, threads), np.concatenate(expected), atol=1e-10
    )


@pytest.mark.parametrize(("n", "parts"), [(0, 3), (1, 4), (10, 3), (10, 10), (7, 20)])
def test_split_evenly(n: int, parts: int) -> None:
    slices = split_evenly(n, parts)
    assert [i for a, b in slices for i in range(a, b)] == list(range(n))
    assert 1 <= len(slices) <= parts
    sizes = [b - a for a, b in slices]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("threads", [1, 2])
def test_map_threads_keeps_order_and_raises(threads: int) -> None:
    assert map_threads(lambda x: x * x, range(20), threads) == [x * x for x in range(20)]
    assert map_threads(lambda x: x, [], threads) == []

    def fail(x: int) -> int:
        raise ValueError(str(x))

    with pytest.raises(ValueError, match="0"):
        map_threads(fail, [0, 1], threads)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_map_threads_in_a_forked_child() -> None:
    map_threads(abs, [1, 2, 3], 2)  # the parent's pool now has threads
    child = multiprocessing.get_context("fork").Process(target=map_threads, args=(abs, [1, 2], 2))
    child.start()
    child.join(20)
    finished = child.exitcode
    child.kill()
    assert finished == 0
