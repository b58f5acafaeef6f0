"""Metrics within groups: by hand, against scikit-learn, and against slow definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from gdmix.errors import ConfigError, DataError
from gdmix.evaluation.evaluate import evaluate
from gdmix.evaluation.grouped import group_auc, ndcg_at, rank_rows

KINDS = ("auc", "precision@2", "ndcg@2", "mrr")


def value(kind, score, response, code, weight=None):
    score, response = np.asarray(score, float), np.asarray(response, float)
    weight = np.ones(score.size) if weight is None else np.asarray(weight, float)
    name, groups = f"{kind}:user", {"user": np.asarray(code, np.int32)}
    return evaluate([name], score, response, weight, task="logistic_regression", groups=groups)[
        name
    ]


def by_group(code):
    return [np.flatnonzero(code == group) for group in np.unique(code[code >= 0])]


def tied_rows(seed, n=3000, n_groups=200):
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 5, n).astype(float)
    response = (rng.random(n) < 0.3).astype(float)
    return score, response, rng.integers(-1, n_groups, n), rng.gamma(0.5, size=n) + 1e-3


def test_auc_by_hand():
    score = [3, 2, 1, 1, 1, 5, 4, 9]
    response = [1, 0, 1, 0, 1, 1, 1, 0]
    weight = [1, 2, 3, 1, 3, 1, 1, 1]
    # Group 0: a pair in order of weight 2, one out of order of weight 6; group 1: a tie of
    # weight 3; groups 2 and 3 have one class each and are left out.
    code = [0, 0, 0, 1, 1, 2, 2, 3]
    assert value("auc", score, response, code, weight) == (2 / 8 + 0.5) / 2


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (1, (0 + 2 / 3) / 2),
        (2, (1 / 2 + 2 / 3) / 2),
        (3, (1 / 3 + 2 / 3) / 2),
        (4, (2 / 4 + 2 / 3) / 2),
        (100, (2 / 4 + 2 / 3) / 2),
    ],
)
def test_precision_by_hand(k, expected):
    # Group 0 is 0, 1, 0, 1 from the top; group 1 is one tie of two positives in three rows;
    # group 2 has no positive.
    score = [4, 3, 2, 1, 7, 7, 7, 1, 2]
    response = [0, 1, 0, 1, 1, 0, 1, 0, 0]
    code = [0, 0, 0, 0, 1, 1, 1, 2, 2]
    assert value(f"precision@{k}", score, response, code) == pytest.approx(expected, rel=1e-15)


def test_ndcg_by_hand():
    second = 1 / math.log2(3)
    assert value("ndcg@5", [2, 1], [0, 1], [0, 0]) == pytest.approx(second, rel=1e-15)
    assert value("ndcg@1", [2, 1], [0, 1], [0, 0]) == 0.0
    assert value("ndcg@5", [1, 1], [0, 1], [0, 0]) == pytest.approx((1 + second) / 2, rel=1e-15)
    graded = (1 + 3 * second) / (3 + second)
    assert value("ndcg@5", [2, 1], [1, 3], [0, 0]) == pytest.approx(graded, rel=1e-15)
    assert value("ndcg@5", [2, 1, 3], [1, 3, 0], [0, 0, 1]) == pytest.approx(graded, rel=1e-15)


def test_mrr_by_hand():
    assert value("mrr", [3, 2, 1], [0, 0, 1], [0, 0, 0]) == pytest.approx(1 / 3, rel=1e-15)
    # One row above; among three tied rows the first of two positives is expected at 4/3.
    assert value("mrr", [9, 5, 5, 5], [0, 1, 0, 1], [0, 0, 0, 0]) == pytest.approx(3 / 7, rel=1e-15)
    assert value("mrr", [2, 1, 2, 1, 5], [1, 0, 0, 1, 0], [0, 0, 1, 1, 2]) == 0.75


@pytest.mark.parametrize("seed", range(3))
def test_auc_matches_scikit_learn(seed):
    score, response, code, weight = tied_rows(seed)
    expected = [
        sk.roc_auc_score(response[rows], score[rows], sample_weight=weight[rows])
        for rows in by_group(code)
        if 0 < response[rows].mean() < 1
    ]
    assert value("auc", score, response, code, weight) == pytest.approx(
        np.mean(expected), rel=1e-13
    )


@pytest.mark.parametrize("k", [1, 3, 10, 1000])
@pytest.mark.parametrize("graded", [False, True])
def test_ndcg_matches_scikit_learn(k, graded):
    score, response, code, _ = tied_rows(seed=k)
    if graded:
        response = np.random.default_rng(k).choice([0.0, 0.5, 1.0, 4.0], score.size)
    expected = [
        sk.ndcg_score(response[rows][None], score[rows][None], k=k)
        for rows in by_group(code)
        if response[rows].any() and rows.size > 1
    ]
    lonely = [rows for rows in by_group(code) if rows.size == 1 and response[rows].any()]
    expected += [1.0 for _ in lonely]
    assert value(f"ndcg@{k}", score, response, code) == pytest.approx(np.mean(expected), rel=1e-13)


def slow(kind, rows):
    """Average one group's metric over every order that the scores allow, None if undefined."""
    rows = [row for row in rows if row[2] > 0]
    positives, negatives = [r for r in rows if r[1]], [r for r in rows if not r[1]]
    if not positives:
        return None
    if kind == "auc":
        pairs = [(p[0] - q[0], p[2] * q[2]) for p in positives for q in negatives]
        agree = sum(w * ((d > 0) + (d == 0) / 2) for d, w in pairs)
        return agree / sum(w for _, w in pairs) if pairs else None
    orders = [
        [response for _, response, _ in sorted(order, key=lambda row: -row[0])]
        for order in itertools.permutations(rows)
    ]
    if kind == "mrr":
        return 1 / np.mean([order.index(1) + 1 for order in orders])
    name, k = kind.split("@")
    heads = [order[: int(k)] for order in orders]
    if name == "precision":
        return np.mean([np.mean(head) for head in heads])
    gains = [sum(y / math.log2(2 + i) for i, y in enumerate(head)) for head in heads]
    ideal = sorted((response for _, response, _ in rows), reverse=True)[: int(k)]
    return np.mean(gains) / sum(y / math.log2(2 + i) for i, y in enumerate(ideal))


ROW = st.tuples(st.integers(0, 2), st.integers(0, 1), st.sampled_from([0.0, 0.25, 1.0, 3.0]))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    groups=st.lists(st.lists(ROW, max_size=5), max_size=5),
    homeless=st.lists(ROW, max_size=2),
    stride=st.sampled_from([1, 70_000, 2**28]),
    seed=st.integers(0, 9),
)
@pytest.mark.parametrize("kind", [*KINDS, "precision@1", "precision@4", "ndcg@1", "ndcg@9"])
def test_matches_the_mean_over_all_orders(kind, groups, homeless, stride, seed):
    expected = [v for rows in groups if (v := slow(kind, rows)) is not None]
    flat = [(*row, stride * i) for i, rows in enumerate(groups) for row in rows]
    flat += [(*row, -1) for row in homeless]
    shuffled = np.array(flat, float).reshape(-1, 4)[
        np.random.default_rng(seed).permutation(len(flat))
    ]
    score, response, weight, code = shuffled.T
    assert value(kind, score, response, code, weight) == pytest.approx(
        np.mean(expected) if expected else math.nan, rel=1e-12, nan_ok=True
    )


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 70_000)), max_size=20)
)
def test_rows_are_ranked_by_group_then_falling_score(rows):
    score, _, code = np.array(rows, float).reshape(-1, 3).T
    code = code.astype(np.int32)
    ranking = rank_rows(score, code)
    assert sorted(ranking.order.tolist()) == list(range(len(rows)))
    keys = [(int(code[i]), -float(score[i])) for i in ranking.order]
    assert keys == sorted(keys)
    blocks = [[*block] for _, block in itertools.groupby(keys)]
    assert ranking.block_size.tolist() == [len(block) for block in blocks]
    sizes = [len([*group]) for _, group in itertools.groupby(key[0] for key in keys)]
    assert ranking.group_size.tolist() == sizes
    assert ranking.position.tolist() == [i for size in sizes for i in range(size)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_order_scores_one(kind):
    score, response, code, weight = tied_rows(0, n=60, n_groups=10)
    best = 1.0 if not kind.startswith("precision") else value(kind, response, response, code)
    assert value(kind, response, response, code, weight) == pytest.approx(best, rel=1e-15)
    assert value(kind, score, response, code, weight) <= best


def test_a_heavy_group_does_not_disturb_a_light_one():
    rng = np.random.default_rng(0)
    n = 4000
    score, response = rng.normal(size=n), (rng.random(n) < 0.5).astype(float)
    weight, code = rng.random(n), np.repeat([0, 1], n // 2)
    light = slice(n // 2, n)
    alone = group_auc(rank_rows(score[light], code[light]), response[light], weight[light])
    weight[: n // 2] *= 1e12
    both = group_auc(rank_rows(score, code), response, weight)
    assert both[1] == alone[0]


def test_ranking_metrics_ignore_weights():
    score, response, code, weight = tied_rows(0)
    for kind in KINDS[1:]:
        assert value(kind, score, response, code, weight) == value(kind, score, response, code)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("error")
def test_undefined_without_a_group_that_counts(kind):
    assert math.isnan(value(kind, [], [], []))
    assert math.isnan(value(kind, [1, 2], [0, 1], [-1, -1]))
    assert math.isnan(value(kind, [1, 2], [0, 1], [0, 0], [0, 0]))
    assert math.isnan(value(kind, [1, 2], [0, 0], [0, 0]))
    # The one positive has no weight.
    assert math.isnan(value(kind, [1, 2], [0, 1], [0, 0], [1, 0]))


def test_undefined_groups_are_nan_in_place():
    score, response = np.array([1.0, 2, 1, 2]), np.array([1.0, 0, 0, 0])
    code = np.array([4, 4, 2, 2])
    ranking, ideal = rank_rows(score, code), rank_rows(response, code)
    np.testing.assert_array_equal(group_auc(ranking, response, np.ones(4)), [np.nan, 0.0])
    np.testing.assert_array_equal(ndcg_at(ranking, ideal, response, 1), [np.nan, 0.0])


def test_columns_do_not_mix():
    score, response, code, weight = tied_rows(0)
    other = np.roll(code, 1)
    names = ["mrr:a", "auc:b", "ndcg@3:b", "auc:a"]
    together = evaluate(
        names, score, response, weight, task="logistic_regression", groups={"a": code, "b": other}
    )
    for name, codes in zip(names, [code, other, other, code], strict=True):
        assert together[name] == value(name.split(":")[0], score, response, codes, weight)


def test_a_missing_column():
    with pytest.raises(ConfigError) as error:
        evaluate(
            ["auc:item"],
            np.ones(1),
            np.ones(1),
            np.ones(1),
            task="logistic_regression",
            groups={"user": np.zeros(1, np.int64)},
        )
    assert str(error.value) == "metric 'auc:item': no grouping column 'item'; there are: user"


@pytest.mark.parametrize("kind", ["auc", "precision@3", "mrr"])
def test_labels_that_are_not_binary(kind):
    k = "3" if "@" in kind else "10"
    with pytest.raises(DataError, match=f"such as 4; use 'ndcg@{k}:user' instead"):
        value(kind, [1, 2], [0, 4], [0, 0])
    with pytest.raises(DataError, match="such as 4; use 'rmse' instead"):
        value(kind, [1, 2], [4, -1], [0, 0])


def test_gains_that_are_negative():
    with pytest.raises(DataError, match="needs a non-negative response.* such as -1; use 'rmse'"):
        value("ndcg@3", [1, 2, 3], [2, -1, 0], [0, 0, 0])
