"""Metrics over all rows: by hand, and against scikit-learn."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from gdmix import memory
from gdmix.config import PLAIN_METRICS
from gdmix.errors import ConfigError, DataError
from gdmix.evaluation.evaluate import evaluate


def value(name, score, response, weight=None, task="logistic_regression"):
    score, response = np.asarray(score, float), np.asarray(response, float)
    weight = np.ones(score.size) if weight is None else np.asarray(weight, float)
    return evaluate([name], score, response, weight, task=task, groups={})[name]


def tied_rows(seed, n=2000):
    rng = np.random.default_rng(seed)
    score = rng.integers(-6, 7, n) / 2.0
    response = (rng.random(n) < 1 / (1 + np.exp(-score))).astype(float)
    return score, response, rng.gamma(0.5, size=n)


@pytest.mark.parametrize(
    ("score", "response", "weight", "expected"),
    [
        ([3, 2, 1, 0], [1, 1, 0, 0], None, 1.0),
        ([0, 1, 2, 3], [1, 1, 0, 0], None, 0.0),
        ([3, 2, 1, 0], [1, 0, 1, 0], None, 0.75),
        ([5, 5, 5], [1, 0, 1], None, 0.5),
        ([2, 1, 1], [1, 0, 1], None, 0.75),
        # Of the positive weight 4, 3 is above all negatives and 1 ties with 2 of their 6.
        ([2, 1, 1, 0], [1, 0, 1, 0], [3, 2, 1, 4], (3 * 6 + 1 * (4 + 2 / 2)) / (4 * 6)),
        ([np.inf, -np.inf, 0], [1, 0, 1], None, 1.0),
        ([0.0, -0.0], [1, 0], None, 0.5),
    ],
)
def test_auc_by_hand(score, response, weight, expected):
    assert value("auc", score, response, weight) == expected


@pytest.mark.parametrize(
    ("score", "response", "weight", "expected"),
    [
        ([3, 2, 1, 0], [1, 0, 1, 0], None, (1 + 2 / 3) / 2),
        ([5, 5, 5, 5], [1, 0, 0, 0], None, 0.25),
        ([2, 1, 1], [0, 1, 0], [1, 2, 3], 2 / 6),
        ([2, 1], [1, 1], None, 1.0),
    ],
)
def test_aupr_by_hand(score, response, weight, expected):
    assert value("aupr", score, response, weight) == pytest.approx(expected, rel=1e-15)


def test_losses_by_hand():
    assert value("logloss", [0, 0], [1, 0]) == pytest.approx(math.log(2), rel=1e-15)
    assert value("logloss", [math.log(3), 0], [1, 0], [3, 1]) == pytest.approx(
        (3 * math.log(4 / 3) + math.log(2)) / 4, rel=1e-15
    )
    assert value("poisson_loss", [0, math.log(2)], [3, 1], [1, 3]) == pytest.approx(
        (1 + 3 * (2 - math.log(2))) / 4, rel=1e-15
    )


@pytest.mark.parametrize(
    ("task", "score", "response"),
    [
        ("linear_regression", [1.0, -2.0], [4.0, -1.0]),
        ("logistic_regression", [0.0, math.log(3)], [3.5, 1.75]),
        ("poisson_regression", [0.0, math.log(2)], [4.0, 3.0]),
    ],
)
def test_errors_of_the_predicted_mean_by_hand(task, score, response):
    # Every case has errors of 3 and 1.
    assert value("rmse", score, response, [1, 3], task) == pytest.approx(math.sqrt(3), rel=1e-15)
    assert value("mae", score, response, [1, 3], task) == pytest.approx(1.5, rel=1e-15)


@pytest.mark.parametrize("seed", range(5))
def test_ranking_metrics_match_scikit_learn(seed):
    score, response, weight = tied_rows(seed)
    assert value("auc", score, response, weight) == pytest.approx(
        sk.roc_auc_score(response, score, sample_weight=weight), rel=1e-12
    )
    assert value("aupr", score, response, weight) == pytest.approx(
        sk.average_precision_score(response, score, sample_weight=weight), rel=1e-12
    )


@pytest.mark.parametrize("seed", range(3))
def test_losses_match_scikit_learn(seed):
    score, response, weight = tied_rows(seed)
    probability = 1 / (1 + np.exp(-score))
    assert value("logloss", score, response, weight) == pytest.approx(
        sk.log_loss(response, probability, sample_weight=weight), rel=1e-12
    )
    assert value("rmse", score, response, weight) == pytest.approx(
        sk.root_mean_squared_error(response, probability, sample_weight=weight), rel=1e-12
    )
    assert value("mae", score, response, weight) == pytest.approx(
        sk.mean_absolute_error(response, probability, sample_weight=weight), rel=1e-12
    )


def test_poisson_loss_differs_from_half_the_deviance_by_the_saturated_loss():
    rng = np.random.default_rng(0)
    score, weight = rng.normal(size=500), rng.random(500)
    response = rng.poisson(np.exp(score)).astype(float)
    deviance = sk.mean_poisson_deviance(response, np.exp(score), sample_weight=weight)
    log = np.log(np.where(response > 0, response, 1))
    saturated = np.average(response - response * log, weights=weight)
    assert value("poisson_loss", score, response, weight, "poisson_regression") == pytest.approx(
        deviance / 2 + saturated, rel=1e-12
    )


def test_logloss_is_stable_for_large_scores():
    assert value("logloss", [800.0, -800.0], [1, 0]) == 0.0
    assert value("logloss", [800.0, -800.0], [0, 1]) == 800.0
    assert value("logloss", [40.0], [1]) == pytest.approx(math.exp(-40), rel=1e-12)
    assert value("logloss", [np.inf], [1]) == 0.0


@pytest.mark.filterwarnings("error")
def test_an_overflowing_mean_is_an_infinite_loss():
    for name in ("poisson_loss", "rmse", "mae"):
        assert value(name, [1000.0], [1.0], task="poisson_regression") == math.inf


@settings(derandomize=True, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 1), st.sampled_from([0.0, 0.25, 1.0, 3.0])),
        max_size=12,
    )
)
def test_ranking_metrics_match_their_definitions(rows):
    score, response, weight = np.array(rows, float).reshape(-1, 3).T
    counted = [row for row in rows if row[2] > 0]
    positives = [(s, w) for s, y, w in counted if y]
    negatives = [(s, w) for s, y, w in counted if not y]
    pairs = [(p - q, v * w) for p, v in positives for q, w in negatives]
    auc = sum(w * ((d > 0) + (d == 0) / 2) for d, w in pairs)
    auc = auc / sum(w for _, w in pairs) if pairs else math.nan
    aupr = sum(
        v * sum(w for q, w in positives if q >= p) / sum(w for q, _, w in counted if q >= p)
        for p, v in positives
    )
    aupr = aupr / sum(w for _, w in positives) if positives else math.nan
    assert value("auc", score, response, weight) == pytest.approx(auc, rel=1e-12, nan_ok=True)
    assert value("aupr", score, response, weight) == pytest.approx(aupr, rel=1e-12, nan_ok=True)


def test_a_class_without_weight_leaves_metrics_undefined():
    assert math.isnan(value("auc", [1, 2], [1, 1]))
    assert math.isnan(value("auc", [1, 2], [0, 0]))
    assert math.isnan(value("auc", [1, 2], [0, 1], [1, 0]))
    assert math.isnan(value("aupr", [1, 2], [0, 0]))
    assert math.isnan(value("aupr", [1, 2], [0, 1], [1, 0]))


@pytest.mark.parametrize("weight", [[], [0.0, 0.0]])
@pytest.mark.parametrize("name", PLAIN_METRICS)
@pytest.mark.filterwarnings("error")
def test_no_rows_that_count_is_nan(name, weight):
    rows = np.zeros(len(weight))
    assert math.isnan(value(name, rows, rows, weight))


@pytest.mark.parametrize("name", PLAIN_METRICS)
def test_rows_of_zero_weight_do_not_count_whatever_they_hold(name):
    score, response, weight = tied_rows(0, n=50)
    expected = value(name, score, response, weight)
    padded = value(
        name,
        np.append(score, [np.nan, 1e300]),
        np.append(response, [7.0, np.nan]),
        np.append(weight, [0.0, 0.0]),
    )
    assert padded == expected


def test_the_order_of_names_is_kept():
    names = ["mae", "auc:u", "auc", "mrr:u", "aupr"]
    ones = np.ones(3)
    values = evaluate(
        names, ones, ones, ones, task="linear_regression", groups={"u": np.zeros(3, np.int64)}
    )
    assert list(values) == names


def test_inputs_are_left_as_they_were():
    rows = tied_rows(0, n=50)
    before = [column.copy() for column in rows]
    code = {"u": np.arange(50) % 7 - 1}
    names = [*PLAIN_METRICS, "auc:u", "precision@2:u", "ndcg@2:u", "mrr:u"]
    evaluate(names, *rows, task="logistic_regression", groups=code)
    for column, copy in zip(rows, before, strict=True):
        np.testing.assert_array_equal(column, copy)


@pytest.mark.parametrize(
    ("name", "task", "instead"),
    [
        ("auc", "linear_regression", "rmse"),
        ("aupr", "poisson_regression", "poisson_loss"),
        ("logloss", "linear_regression", "rmse"),
    ],
)
def test_labels_that_are_not_binary(name, task, instead):
    with pytest.raises(DataError) as error:
        value(name, [1, 2, 3], [0, 1, 2.5], task=task)
    assert str(error.value) == (
        f"metric '{name}' needs a response of 0 and 1 only, but the response has other "
        f"values, such as 2.5; use '{instead}' instead"
    )


def test_nan_and_bad_weights_are_counted():
    with pytest.raises(DataError, match="^2 of 3 rows to evaluate have a score of NaN; "):
        value("mae", [np.nan, 1, np.nan], [0, 1, 0])
    with pytest.raises(DataError, match="^1 of 2 rows to evaluate have a response of NaN; "):
        value("mae", [1, 2], [np.nan, 1])
    for weight in (-1.0, np.nan, np.inf):
        with pytest.raises(DataError, match="^1 of 2 rows .* negative or not finite; "):
            value("mae", [1, 2], [0, 1], [1, weight])


def test_an_unknown_metric():
    with pytest.raises(ConfigError, match="unknown metric 'aucc'"):
        value("aucc", [1], [1])


@pytest.mark.parametrize("seed", range(8))
def test_parts_that_fit_into_memory_do_not_show(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    n = 400
    score = rng.choice([rng.normal(size=n), rng.integers(-3, 4, n) / 2.0], axis=0)
    response = (rng.random(n) < 0.4).astype(float)
    weight = rng.choice([0.0, 0.5, 1.0, 3.0], n)
    code = rng.integers(-1, 40, n).astype(np.int32)
    names = ["auc", "aupr", "logloss", "rmse", "mae", "auc:g", "ndcg@5:g", "precision@3:g", "mrr:g"]

    def all_metrics() -> dict[str, float]:
        task = "logistic_regression"
        return evaluate(names, score, response, weight, task=task, groups={"g": code})

    for infinite in (False, True):
        if infinite:
            score[:9], score[9:20] = np.inf, -np.inf
            del names[2:5]
        whole = all_metrics()
        for rows_at_once in (1, 7, 60, 250, 10_000):
            with memory.limited(800 * rows_at_once, tmp_path / "scratch"):
                assert all_metrics() == pytest.approx(whole, rel=1e-12)
