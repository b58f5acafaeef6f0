from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gdmix.data.entity_blocks import GroupedRows, columns_of_rows, group_passive, group_rows
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.scoring import score_block, score_random


def csr(rows: list[dict[int, float]], n_columns: int) -> CsrMatrix:
    return CsrMatrix(
        np.cumsum([0, *map(len, rows)]).astype(np.int64),
        np.array([j for row in rows for j in row], np.uint32),
        np.array([v for row in rows for v in row.values()], np.float32),
        n_columns,
    )


def group(
    rows: list[dict[int, float]],
    entity: Any,
    n_entities: int,
    n_columns: int,
    threads: int = 1,
    max_part_rows: int | None = None,
) -> GroupedRows:
    n = len(rows)
    response, weight = np.arange(n, dtype=float), 1.0 + np.arange(n, dtype=float)
    codes = np.asarray(entity, np.int32)
    design = csr(rows, n_columns)
    return group_rows(design, codes, n_entities, response, weight, threads, max_part_rows)


def assert_naive(
    grouped: GroupedRows, rows: list[dict[int, float]], entity: list[int], n_entities: int
) -> None:
    """Compare with the definition, entity by entity."""
    block = grouped.block
    assert (block.n_entities, block.n_rows) == (n_entities, sum(e >= 0 for e in entity))
    position = 0
    numbers = np.arange(len(rows), dtype=float)
    came_from = grouped.rows.gather(numbers)
    there_and_back = grouped.rows.scatter(came_from)
    np.testing.assert_array_equal(there_and_back, np.where(np.array(entity) >= 0, numbers, 0.0))
    for e in range(n_entities):
        own_rows = [i for i, owner in enumerate(entity) if owner == e]
        columns = sorted({j for i in own_rows for j in rows[i]})
        first, last = block.coefficient_ptr[e], block.coefficient_ptr[e + 1]
        assert grouped.columns[first:last].tolist() == [0, *(1 + j for j in columns)]
        assert block.row_ptr[e + 1] - block.row_ptr[e] == len(own_rows)
        for k, i in enumerate(own_rows, int(block.row_ptr[e])):
            assert came_from[k] == i
            assert (block.response[k], block.weight[k]) == (i, 1 + i)
            span = slice(block.indptr[k], block.indptr[k + 1])
            local = [columns.index(j) for j in rows[i]]
            assert block.indices[span].tolist() == local
            assert block.values[span].tolist() == [np.float32(v) for v in rows[i].values()]
            position += len(local)
    assert block.indptr[-1] == block.indices.size == block.values.size == position


@st.composite
def problems(draw: Any) -> tuple[list[dict[int, float]], list[int], int, int]:
    # Many columns with few features take another way through the sorting than few columns.
    n_columns = draw(st.sampled_from([0, 1, 3, 63, 64, 65, 100_000]))
    column = st.integers(0, n_columns - 1) if n_columns else st.nothing()
    row = st.dictionaries(column, st.integers(-4, 4).map(float), max_size=min(n_columns, 6))
    rows = draw(st.lists(row if n_columns else st.just({}), max_size=12))
    n_entities = draw(st.integers(0, 5))
    owner = st.integers(-1, n_entities - 1)
    return (
        rows,
        draw(st.lists(owner, min_size=len(rows), max_size=len(rows))),
        n_entities,
        n_columns,
    )


@settings(derandomize=True, deadline=None, max_examples=300)
@given(problems(), st.integers(1, 3), st.integers(1, 12))
def test_grouping_is_that_of_the_definition(
    problem: tuple[list[dict[int, float]], list[int], int, int], threads: int, max_part_rows: int
) -> None:
    rows, entity, n_entities, n_columns = problem
    grouped = group(rows, entity, n_entities, n_columns, threads, max_part_rows)
    assert_naive(grouped, rows, entity, n_entities)


def random_problem(n_columns: int, n: int = 400) -> tuple[list[dict[int, float]], NDArray[Any]]:
    rng = np.random.default_rng(0)
    chosen = (rng.choice(n_columns, min(n_columns, 30), replace=False) for _ in range(n))
    rows = [{int(j): float(j) for j in columns} for columns in chosen]
    return rows, rng.integers(-1, 9, n)


@pytest.mark.parametrize("n_columns", [40, 3000, 1_000_000])
def test_large_entities(n_columns: int) -> None:
    rows, entity = random_problem(n_columns)
    assert_naive(group(rows, entity, 9, n_columns), rows, entity.tolist(), 9)


def test_every_bit_of_a_word() -> None:
    for j in range(200):
        assert group([{j: 1.0}], [0], 1, 200).columns.tolist() == [0, j + 1]
    rows = [{j: 1.0 for j in reversed(range(200))}]
    assert group(rows, [0], 1, 200).columns.tolist() == list(range(201))


def test_threads_do_not_show() -> None:
    rows, entity = random_problem(500)
    one = group(rows, entity, 9, 500, threads=1)
    for threads in (2, 3, 8):
        many = group(rows, entity, 9, 500, threads)
        np.testing.assert_array_equal(one.columns, many.columns)
        np.testing.assert_array_equal(one.rows.order, many.rows.order)
        for name in ("row_ptr", "coefficient_ptr", "indptr", "indices", "values", "response"):
            np.testing.assert_array_equal(getattr(one.block, name), getattr(many.block, name))


def test_layout_of_the_model_does_not_depend_on_the_order_of_rows() -> None:
    rows, entity = random_problem(500)
    one = group(rows, entity, 9, 500)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(rows))
        moved = group([rows[i] for i in order], entity[order], 9, 500)
        np.testing.assert_array_equal(one.columns, moved.columns)
        np.testing.assert_array_equal(one.block.coefficient_ptr, moved.block.coefficient_ptr)


def test_types() -> None:
    grouped = group([{1: 2.0}, {}], [0, -1], 2, 3)
    block = grouped.block
    assert {
        a.dtype for a in (block.row_ptr, block.coefficient_ptr, block.indptr, grouped.rows.order)
    } == {np.dtype(np.int64)}
    assert (block.indices.dtype, grouped.columns.dtype) == (np.uint32, np.uint32)
    assert block.values.dtype == np.float32


def test_entities_without_rows_keep_an_intercept() -> None:
    grouped = group([{0: 1.0}], [1], 3, 1)
    assert grouped.columns.tolist() == [0, 0, 1, 0]
    assert grouped.block.row_ptr.tolist() == [0, 0, 1, 1]


def test_rows_without_entity_are_left_out() -> None:
    grouped = group([{0: 1.0}, {1: 1.0}, {0: 3.0}], [-1, -1, -1], 2, 2)
    assert grouped.rows.order.size == 0
    assert grouped.columns.tolist() == [0, 0]


def test_stored_zeros_are_features_too() -> None:
    assert group([{2: 0.0}], [0], 1, 3).columns.tolist() == [0, 3]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(problems(), st.randoms(use_true_random=False), st.integers(1, 3), st.integers(1, 12))
def test_passive_rows_take_the_columns_of_the_active_ones(
    problem: tuple[list[dict[int, float]], list[int], int, int],
    random: Any,
    threads: int,
    max_part_rows: int,
) -> None:
    rows, entity, n_entities, n_columns = problem
    passive = [e if random.random() < 0.5 else -1 for e in entity]
    active = [-1 if p >= 0 else e for e, p in zip(entity, passive, strict=True)]
    layout = group(rows, active, n_entities, n_columns)
    design, codes = csr(rows, n_columns), np.asarray(passive, np.int32)
    grouped, missing = group_passive(design, codes, layout, threads, max_part_rows)
    values = np.random.default_rng(0).normal(size=layout.columns.size)
    model = layout.block.coefficient_ptr, layout.columns, values
    expected = score_random(design, codes, *model)
    scores = grouped.rows.scatter(score_block(grouped.block, values))
    np.testing.assert_allclose(scores, expected, atol=1e-12)
    lacking = set()
    for row, e in zip(rows, passive, strict=True):
        own = layout.columns[slice(*layout.block.coefficient_ptr[e : e + 2])] if e >= 0 else []
        lacking |= {1 + j for j in row if e >= 0 and 1 + j not in own}
    assert set(np.flatnonzero(missing).tolist()) == lacking


def test_columns_of_rows() -> None:
    design = csr([{0: 1.0}, {2: 1.0}, {}], 4)
    for chosen, columns in (
        ([False, True, False], [0, 3]),
        ([True, False, True], [0, 1]),
        ([False, False, True], [0]),
        ([False, False, False], []),
    ):
        assert np.flatnonzero(columns_of_rows(design, np.array(chosen))).tolist() == columns
