from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gdmix.data.keys import Keys, key_column
from gdmix.errors import DataError
from gdmix.glm.matrix import CsrMatrix
from gdmix.model.coefficients import (
    FixedCoefficients,
    RandomCoefficients,
    concatenated,
    entity_numbers,
)


def keys_of(column: pa.Array) -> Keys:
    return key_column(pa.chunked_array([column]), "e", "rows")


SLOW_TO_DRAW = settings(derandomize=True, deadline=None, max_examples=40)


def csr(dense: NDArray[np.float64]) -> CsrMatrix:
    rows, columns = np.nonzero(dense)
    counts = np.bincount(rows, minlength=dense.shape[0])
    return CsrMatrix(
        np.concatenate(([0], np.cumsum(counts))),
        columns.astype(np.uint32),
        dense[rows, columns].astype(np.float32),
        dense.shape[1],
    )


@st.composite
def designs(draw: st.DrawFn) -> NDArray[np.float64]:
    shape = draw(st.integers(0, 8)), draw(st.integers(0, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return rng.integers(-3, 4, shape) * (rng.random(shape) < 0.6) / 4.0


@st.composite
def random_coefficients(draw: st.DrawFn, n_columns: int, strings: bool) -> RandomCoefficients:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = draw(st.integers(0, 4))
    owned = [
        np.concatenate(([0], 1 + np.flatnonzero(rng.random(n_columns) < 0.6))) for _ in range(n)
    ]
    numbers = np.sort(rng.choice(9, n, replace=False))
    columns = np.concatenate([np.empty(0, np.uint32), *owned]).astype(np.uint32)
    return RandomCoefficients(
        pa.array([f"e{i}" for i in numbers], pa.large_string()) if strings else pa.array(numbers),
        np.concatenate(([0], np.cumsum([len(c) for c in owned]))).astype(np.int64),
        columns,
        rng.normal(size=columns.size),
    )


@SLOW_TO_DRAW
@given(designs(), st.integers(0, 2**32), st.integers(1, 2))
def test_fixed_scores_are_those_of_plain_python(
    dense: NDArray[np.float64], seed: int, threads: int
) -> None:
    values = np.random.default_rng(seed).normal(size=1 + dense.shape[1])
    expected = [values[0] + sum(v * values[1 + j] for j, v in enumerate(row)) for row in dense]
    scores = FixedCoefficients(values).score(csr(dense), threads)
    np.testing.assert_allclose(scores, expected, atol=1e-12)


@SLOW_TO_DRAW
@given(st.data(), designs(), st.booleans(), st.integers(1, 2))
def test_random_scores_are_those_of_plain_python(
    data: st.DataObject, dense: NDArray[np.float64], strings: bool, threads: int
) -> None:
    model = data.draw(random_coefficients(dense.shape[1], strings))
    keys = data.draw(
        st.lists(st.none() | st.integers(0, 9), min_size=dense.shape[0], max_size=dense.shape[0])
    )
    if strings:
        key = pa.array([None if k is None else f"e{k}" for k in keys], pa.large_string())
    else:
        key = pa.array(keys, pa.int64())
    by_entity = {
        entity: dict(
            zip(
                model.columns[model.indptr[e] : model.indptr[e + 1]].tolist(),
                model.values[model.indptr[e] : model.indptr[e + 1]],
                strict=True,
            )
        )
        for e, entity in enumerate(model.entities.to_pylist())
    }
    expected = [
        sum(v * own.get(c, 0.0) for c, v in enumerate([1.0, *row]))
        for entity, row in zip(key.to_pylist(), dense, strict=True)
        for own in [by_entity.get(entity, {})]
    ]
    numbers = entity_numbers(keys_of(key), model.entities, "e")
    scores = model.score(csr(dense), numbers, threads)
    np.testing.assert_allclose(scores, expected, atol=1e-12)


def small() -> RandomCoefficients:
    return RandomCoefficients(
        pa.array([3, 5]),
        np.array([0, 2, 3]),
        np.array([0, 2, 0], np.uint32),
        np.array([0.5, 2.0, -1.0]),
    )


def test_unseen_entities_and_unseen_features_add_zero() -> None:
    design = csr(np.array([[4.0, 1.0], [4.0, 1.0], [4.0, 1.0], [4.0, 1.0]]))
    numbers = entity_numbers(keys_of(pa.array([3, 5, 4, None], pa.int64())), small().entities, "e")
    np.testing.assert_array_equal(numbers, [0, 1, -1, -1])
    np.testing.assert_array_equal(small().score(design, numbers), [2.5, -1.0, 0.0, 0.0])


def test_entities_of_another_type_are_one_clear_error() -> None:
    with pytest.raises(DataError) as caught:
        entity_numbers(keys_of(pa.array(["3"], pa.large_string())), small().entities, "user_id")
    assert str(caught.value) == (
        "entity column 'user_id' is large_string in these rows, "
        "but int64 in those the model was trained on; cast it"
    )


@pytest.mark.parametrize(
    ("entity", "number"),
    [(3, 0), (5, 1), ("5", 1), (np.int64(3), 0), (4, -1), ("x", -1), (3.5, -1), (None, -1),
     ([3], -1), (object(), -1)],
)  # fmt: skip
def test_find_among_integers(entity: object, number: int) -> None:
    assert small().find(entity) == number


@pytest.mark.parametrize(("entity", "number"), [("b", 1), (3, 0), ("c", -1), (None, -1)])
def test_find_among_strings(entity: object, number: int) -> None:
    entities = pa.array(["3", "b"], pa.large_string())
    model = RandomCoefficients(
        entities, np.array([0, 1, 2]), np.zeros(2, np.uint32), np.array([1.0, 2.0])
    )
    assert model.find(entity) == number


def test_length_is_the_number_of_models() -> None:
    assert len(small()) == 2
    assert len(FixedCoefficients(np.zeros(7))) == 1


@pytest.mark.parametrize("strings", [False, True])
def test_parts_that_are_put_together_are_the_whole(strings: bool) -> None:
    rng = np.random.default_rng(4)
    sizes = rng.integers(1, 5, 12)
    kind = pa.large_string() if strings else pa.int64()
    whole = RandomCoefficients(
        pa.array(np.arange(12) + 20).cast(kind),
        np.concatenate(([0], np.cumsum(sizes))),
        np.concatenate([np.arange(n, dtype=np.uint32) for n in sizes]),
        rng.normal(size=int(sizes.sum())),
        rng.random(int(sizes.sum())),
    )
    of_part = np.array([2, 0, 1, 1, 0, 2, 0, 2, 1, 0, 0, 1])
    parts = [whole.take(np.flatnonzero(of_part == k)) for k in (3, 1, 2, 0)]
    found = concatenated(parts)
    assert found.entities == whole.entities
    for name in ("indptr", "columns", "values", "variances"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    plain = [replace(part, variances=None) for part in parts]
    assert concatenated(plain).variances is None
