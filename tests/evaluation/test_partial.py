"""Metrics of rows divided among partitions: as of all rows at once, whatever the division."""

from __future__ import annotations

import math
import pickle
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from gdmix.config import PLAIN_METRICS
from gdmix.data.keys import Keys, key_column
from gdmix.errors import ConfigError, DataError
from gdmix.evaluation.checks import Rows
from gdmix.evaluation.evaluate import evaluate
from gdmix.evaluation.partial import DistributedEvaluation
from gdmix.evaluation.sums import ScoreSample, splitters

TASKS = ("logistic_regression", "linear_regression", "poisson_regression")
GROUPED = ["auc:u", "precision@3:u", "ndcg@2:u", "mrr:u", "ndcg@5:t/u", "auc:t/u"]
NAMES = [*GROUPED[:3], *PLAIN_METRICS, *GROUPED[3:]]


def column(values, kind):
    return key_column(pa.chunked_array([pa.array(values, kind)]), "u", "rows")


def columns(code):
    """Group rows by integers and by strings, one of them empty; a negative code is no key."""
    code = np.asarray(code)
    integers = [None if c < 0 else int(c) * 10**15 - 3 for c in code]
    strings = [None if c < 0 else "é" * (int(c) // 2) for c in code]
    return {"u": (integers, pa.int64()), "t/u": (strings, pa.large_string())}


def local(names, rows, groups=None, task="logistic_regression"):
    codes = {name: column(*values).codes for name, values in (groups or {}).items()}
    return evaluate(names, *rows, task=task, groups=codes)


def distributed(
    names, rows, groups=None, task="logistic_regression", home=None, partitions=4, parts=3
):
    """Do as an engine does: all that passes between its tasks is pickled."""
    groups = groups or {}
    evaluation = DistributedEvaluation(names, task=task, columns=groups, parts=parts)
    evaluation = pickle.loads(pickle.dumps(evaluation))
    n = len(rows[0])
    home = np.random.default_rng(n).integers(0, partitions, n) if home is None else home
    homes = [np.flatnonzero(home == p) for p in range(partitions)]
    divided = [Rows(*(np.asarray(a, float)[own] for a in rows)) for own in homes]
    keys = [
        {name: column([values[i] for i in own], kind) for name, (values, kind) in groups.items()}
        for own in homes
    ]
    firsts = [pickle.loads(pickle.dumps(evaluation.first(own))) for own in divided]
    plan = pickle.loads(pickle.dumps(evaluation.plan(firsts)))
    messages = defaultdict(list)
    for own, own_keys in zip(divided, keys, strict=True):
        for target, message in evaluation.split(own, own_keys, plan):
            assert 0 <= target < evaluation.targets
            assert all(type(array) is np.ndarray for array in message.values())
            messages[target].append(pickle.loads(pickle.dumps(message)))
    shares = [evaluation.reduce(target, found) for target, found in messages.items()]
    return evaluation.finish(plan, pickle.loads(pickle.dumps(shares)))


def random_rows(seed, n=2000):
    """Return scores with ties, some of them infinite, 0-1 responses, weights with zeros, groups."""
    rng = np.random.default_rng(seed)
    score = np.where(rng.random(n) < 0.5, rng.normal(size=n), rng.integers(-3, 4, n) / 2.0)
    response = (rng.random(n) < 0.3).astype(float)
    weight = rng.choice([0.0, 1.0, 1e-3, 7.0], n) * rng.random(n)
    return (score, response, weight), columns(rng.integers(-1, 60, n))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", range(4))
def test_as_of_all_rows_at_once(seed, task):
    rows, groups = random_rows(seed)
    expected = local(NAMES, rows, groups, task)
    assert all(math.isfinite(value) for value in expected.values())
    for partitions, parts in [(1, 1), (1, 5), (4, 1), (7, 3), (3, 300)]:
        values = distributed(NAMES, rows, groups, task, partitions=partitions, parts=parts)
        assert list(values) == NAMES
        assert values == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_infinite_scores_and_responses_that_are_counts(seed):
    (score, response, weight), groups = random_rows(seed)
    score[:60], score[60:100] = np.inf, -np.inf
    names = ["auc", "aupr", *GROUPED, "logloss", "rmse", "poisson_loss"]
    rows = score, response, weight
    expected = local(names, rows, groups)
    assert distributed(names, rows, groups) == pytest.approx(expected, rel=1e-12, nan_ok=True)
    rows = score[100:], np.random.default_rng(seed).poisson(2.0, 1900).astype(float), weight[100:]
    groups = {name: (values[100:], kind) for name, (values, kind) in groups.items()}
    names = ["rmse", "mae", "poisson_loss", "ndcg@3:u", "ndcg@7:t/u"]
    expected = local(names, rows, groups, TASKS[2])
    assert distributed(names, rows, groups, TASKS[2]) == pytest.approx(expected, rel=1e-12)


def test_auc_and_aupr_match_scikit_learn():
    (score, response, weight), _ = random_rows(0)
    values = distributed(["auc", "aupr"], (score, response, weight), partitions=5, parts=6)
    auc = sk.roc_auc_score(response, score, sample_weight=weight)
    aupr = sk.average_precision_score(response, score, sample_weight=weight)
    assert values == pytest.approx({"auc": auc, "aupr": aupr}, rel=1e-12)


ROW = st.tuples(
    st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.5, 2.0, math.inf]),
    st.integers(0, 1),
    st.sampled_from([0.0, 0.25, 1.0, 3.0]),
    st.integers(-1, 3),
    st.integers(0, 2),
)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(rows=st.lists(ROW, max_size=14), parts=st.integers(1, 6), task=st.sampled_from(TASKS))
@example(rows=[], parts=2, task=TASKS[0])
@example(rows=[(0.0, 1, 0.0, 0, 0)] * 3, parts=2, task=TASKS[0])  # none counts
@example(rows=[(1.0, 1, 1.0, -1, 0)] * 3, parts=2, task=TASKS[0])  # of one class, in no group
@example(rows=[(1.0, i % 2, 1.0, 1, i % 3) for i in range(9)], parts=6, task=TASKS[0])  # one tie
@pytest.mark.filterwarnings("error")
def test_any_division_of_any_rows(rows, parts, task):
    *values, code, home = np.array(rows, float).reshape(-1, 5).T
    groups = columns(code)
    expected = local(NAMES, values, groups, task)
    found = distributed(NAMES, values, groups, task, home=home, partitions=3, parts=parts)
    assert found == pytest.approx(expected, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    ("name", "task", "mend"),
    [
        ("auc", TASKS[0], {"weight": -1.0, "score": math.nan}),
        ("mae", TASKS[0], {"weight": math.nan}),
        ("rmse", TASKS[1], {"weight": math.inf}),
        ("mae", TASKS[0], {"score": math.nan, "response": math.nan}),
        ("mrr:u", TASKS[0], {"response": math.nan}),
        ("auc", TASKS[0], {"response": 2.5}),
        ("aupr", TASKS[2], {"response": 2.5}),
        ("logloss", TASKS[1], {"response": -2.0}),
        ("precision@3:u", TASKS[0], {"response": 4.0}),
        ("auc:u", TASKS[1], {"response": -4.0}),
        ("ndcg@3:u", TASKS[2], {"response": -0.5}),
    ],
)
def test_errors_are_the_same(name, task, mend):
    (score, response, weight), groups = random_rows(0, n=60)
    rows = {"score": score, "response": response, "weight": weight + 0.1}
    for k, (kind, bad) in enumerate(mend.items()):
        rows[kind][[7 + k, 31, 44]] = bad
        if kind == "response":
            rows[kind][31] = 2 * bad  # of several the same one is shown
    lines = []
    for compute in (local, distributed):
        with pytest.raises(DataError) as error:
            compute(["rmse", name], tuple(rows.values()), groups, task)
        lines.append(str(error.value))
    assert lines[0] == lines[1]


def test_unknown_names():
    for names in (["aucc"], ["auc:item"]):
        lines = []
        for compute in (local, distributed):
            with pytest.raises(ConfigError) as error:
                compute(names, ([], [], []), columns([]))
            lines.append(str(error.value))
        assert lines[0] == lines[1]


def test_a_bad_row_of_weight_zero_counts_nowhere():
    (score, response, weight), groups = random_rows(0)
    expected = local(NAMES, (score, response, weight), groups)
    none = weight == 0
    assert none.any()
    score[none], response[none] = np.nan, 7.0
    found = distributed(NAMES, (score, response, weight), groups)
    assert found == pytest.approx(expected, rel=1e-12)


def test_means_over_rows_need_no_shuffle():
    rows, groups = random_rows(0)
    names = ["rmse", "logloss"]
    evaluation = DistributedEvaluation(names, task=TASKS[0], columns=groups, parts=3)
    plan = evaluation.plan([evaluation.first(Rows(*rows))])
    assert evaluation.targets == 0
    assert list(evaluation.split(Rows(*rows), {}, plan)) == []
    assert evaluation.finish(plan, []) == pytest.approx(local(names, rows), rel=1e-12)


def test_nothing_as_long_as_the_rows_reaches_the_driver_and_ranges_are_balanced():
    rng = np.random.default_rng(0)
    n, partitions, parts = 200_000, 8, 8
    codes = rng.integers(0, 5000, n).astype(np.int32)
    homes = np.array_split(np.arange(n), partitions)
    score = np.sort(np.exp(3 * rng.normal(size=n)))  # every partition has scores of its own
    rows = Rows(score, (rng.random(n) < 0.3).astype(float), np.ones(n))
    users = pa.array(np.arange(5000))
    evaluation = DistributedEvaluation(
        ["auc", "aupr", "mrr:u"], task=TASKS[0], columns=["u"], parts=parts
    )
    firsts = [evaluation.first(rows[own]) for own in homes]
    plan = evaluation.plan(firsts)
    sizes, found = np.zeros(evaluation.targets, int), defaultdict(list)
    for own in homes:
        for target, message in evaluation.split(rows[own], {"u": Keys(users, codes[own])}, plan):
            sizes[target] += message["score"].size
            found[target].append(message)
    assert sizes[:parts].sum() == sizes[parts:].sum() == n
    assert sizes.max() < 1.15 * n / parts
    shares = [evaluation.reduce(target, messages) for target, messages in found.items()]
    for small in (*firsts, plan, *shares):
        assert len(pickle.dumps(small)) < 10_000
    expected = evaluate(
        ["auc", "aupr", "mrr:u"],
        rows.score,
        rows.response,
        rows.weight,
        task=TASKS[0],
        groups={"u": codes},
    )
    assert evaluation.finish(plan, shares) == pytest.approx(expected, rel=1e-12)


@settings(derandomize=True, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([-math.inf, 0.0, 1.0, 2.0, 3.0, math.inf]), max_size=9), max_size=5
    ),
    st.integers(1, 8),
)
def test_splitters_cut_rows_evenly_but_for_ties(scores, parts):
    bounds = splitters([ScoreSample.of(np.array(s), 100) for s in scores], parts)
    assert bounds.size < parts
    assert (np.diff(bounds) < 0).all()
    rows = np.array([x for s in scores for x in s])
    part = np.searchsorted(bounds[::-1], rows)
    ties = np.bincount(np.unique(rows, return_inverse=True)[1]).max(initial=0)
    assert np.bincount(part).max(initial=0) <= rows.size / parts + ties


def test_a_sample_stands_for_its_partition():
    rng = np.random.default_rng(0)
    samples = [
        ScoreSample.of(rng.random(90_000), 1000),
        ScoreSample.of(1 + rng.random(10_000), 999),
    ]
    assert [sample.score.size for sample in samples] == [1000, 999]
    assert splitters(samples, 10) == pytest.approx(np.arange(9, 0, -1) / 9, abs=0.05)
