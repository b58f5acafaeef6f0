"""Training on a share of the rows of response 0, reweighted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.linear_model import LogisticRegression

from gdmix import ConfigError, FixedEffect, MixedModel, RandomEffect
from gdmix.config import ModelConfig
from gdmix.data.active_rows import RowLimits, choose_rows, sample_negatives
from gdmix.engines.local import LocalEngine, LocalWorkspace

FEATURES = {"row": ["x", "kind"], "tags": ["tags"]}


def prepare(rows: pa.Table, *coordinates: Any, **parameters: Any) -> LocalWorkspace:
    config = ModelConfig.of(coordinates=list(coordinates), features=FEATURES, **parameters)
    return LocalEngine().prepare(config, rows, None)


def fit(rows: pa.Table, *coordinates: Any, **parameters: Any) -> MixedModel:
    return MixedModel(list(coordinates), features=FEATURES, **parameters).fit(rows)


def stands_of(rows: pa.Table, share: float, name: str, seed: int = 0) -> NDArray[np.float64]:
    response = rows["response"].to_numpy().astype(np.float64)
    return sample_negatives(rows["uid"].to_numpy(), response, share, seed, name)


class TestSample:
    UID = np.arange(100_000) * 7 - 1000
    RESPONSE = (np.arange(100_000) % 5 == 0).astype(np.float64)

    @pytest.mark.parametrize("share", [0.03, 0.5, 0.9])
    def test_negatives_stand_for_others_and_positives_for_themselves(self, share: float) -> None:
        stands = sample_negatives(self.UID, self.RESPONSE, share, 0, "g")
        negative = self.RESPONSE == 0
        assert (stands[~negative] == 1).all()
        assert set(stands[negative].tolist()) == {0.0, 1 / share}
        kept = int(np.count_nonzero(stands[negative]))
        test = stats.binomtest(kept, int(negative.sum()), share)
        assert test.pvalue > 1e-4

    def test_it_depends_on_the_row_and_not_on_its_place(self) -> None:
        order = np.random.default_rng(0).permutation(self.UID.size)
        stands = sample_negatives(self.UID, self.RESPONSE, 0.3, 5, "g")
        moved = sample_negatives(self.UID[order], self.RESPONSE[order], 0.3, 5, "g")
        np.testing.assert_array_equal(moved, stands[order])

    def test_another_seed_or_coordinate_has_an_independent_sample(self) -> None:
        negative = self.RESPONSE == 0
        samples = [
            sample_negatives(self.UID, self.RESPONSE, 0.5, seed, name)[negative] > 0
            for seed, name in ((0, "g"), (1, "g"), (0, "h"))
        ]
        for one, other in ((0, 1), (0, 2), (1, 2)):
            agreeing = np.mean(samples[one] == samples[other])
            assert abs(agreeing - 0.5) < 5 * 0.5 / np.sqrt(negative.sum())

    def test_a_smaller_share_is_part_of_a_larger_one(self) -> None:
        few, many = (sample_negatives(self.UID, self.RESPONSE, r, 0, "g") > 0 for r in (0.2, 0.6))
        assert not (few & ~many).any()

    def test_of_what_is_kept_a_capped_entity_has_a_fair_sample(self) -> None:
        # Both choose by a hash of the uid: were it the same, a cap would prefer negatives.
        entity = np.zeros(self.UID.size, np.int32)
        stands = sample_negatives(self.UID, self.RESPONSE, 0.5, 0, "g")
        limits = RowLimits(most=3000)
        chosen = choose_rows(entity, 1, self.UID, np.ones(self.UID.size), limits, stands)
        active = chosen.active >= 0
        assert active.sum() == 3000
        share = (self.RESPONSE[stands > 0] == 0).mean()
        assert stats.binomtest(int((self.RESPONSE[active] == 0).sum()), 3000, share).pvalue > 1e-4
        np.testing.assert_allclose(
            chosen.weight[active], stands[active] * np.count_nonzero(stands) / 3000
        )


class TestChooseRows:
    ENTITY = np.array([0, 0, 0, 1, 1, 2, -1, 2], np.int32)
    STANDS = np.array([1, 0, 2, 0, 0, 1, 0, 0], np.float64)
    WEIGHT = np.arange(1.0, 9.0)

    def test_rows_left_out_are_passive(self) -> None:
        chosen = choose_rows(self.ENTITY, 3, np.arange(8), self.WEIGHT, RowLimits(), self.STANDS)
        assert chosen.entities.tolist() == [0, 2]  # of 1 no row is left
        assert chosen.active.tolist() == [0, -1, 0, -1, -1, 1, -1, -1]
        assert chosen.passive is not None
        assert chosen.passive.tolist() == [-1, 0, -1, -1, -1, -1, -1, 1]
        assert chosen.weight[[0, 2, 5]].tolist() == [1.0, 6.0, 6.0]
        assert self.WEIGHT.tolist() == list(range(1, 9))

    def test_the_least_rows_are_those_that_are_left(self) -> None:
        limits = RowLimits(least=2)
        chosen = choose_rows(self.ENTITY, 3, np.arange(8), self.WEIGHT, limits, self.STANDS)
        assert chosen.entities.tolist() == [0]
        assert chosen.passive is not None
        assert chosen.passive.tolist() == [-1, 0, -1, -1, -1, -1, -1, -1]

    def test_a_capped_entity_has_both_kinds_of_passive_rows(self) -> None:
        limits = RowLimits(most=1)
        chosen = choose_rows(self.ENTITY, 3, np.arange(8), self.WEIGHT, limits, self.STANDS)
        assert chosen.passive is not None
        one = chosen.active[[0, 2]].tolist()
        assert sorted(one) == [-1, 0]
        assert sorted(chosen.passive[[0, 1, 2]].tolist()) == [-1, 0, 0]
        kept = 0 if one[0] == 0 else 2
        assert chosen.weight[kept] == self.WEIGHT[kept] * self.STANDS[kept] * 2


def test_a_fixed_effect_is_that_of_its_sample(train_rows: pa.Table) -> None:
    spec = FixedEffect("g", features=["row", "tags"], negative_sampling=0.4, l2=2.0)
    model = fit(train_rows, spec)
    stands = stands_of(train_rows, 0.4, "g")
    kept = np.flatnonzero(stands)
    assert 0 < kept.size < train_rows.num_rows
    sample = train_rows.take(pa.array(kept)).append_column("weight", pa.array(stands[kept]))
    plain = fit(sample, FixedEffect("g", features=["row", "tags"], l2=2.0))
    np.testing.assert_allclose(plain.predict(train_rows), model.predict(train_rows), atol=1e-9)
    frame = train_rows.to_pandas()
    x = np.column_stack(
        [frame["x"], *((frame["kind"] == k) for k in "abc"),
         *(frame["tags"].map(lambda tags, t=t: t in tags) for t in "pqrs")]
    ).astype(float)  # fmt: skip
    peer = LogisticRegression(C=0.5, tol=1e-12, max_iter=10_000)
    peer.fit(x, frame["response"], sample_weight=stands)
    np.testing.assert_allclose(model.predict(train_rows), peer.predict_proba(x)[:, 1], atol=1e-5)


def test_a_random_effect_is_that_of_its_sample(train_rows: pa.Table) -> None:
    spec = RandomEffect("own", entity="user", features="row", negative_sampling=0.4)
    model = fit(train_rows, spec)
    stands = stands_of(train_rows, 0.4, "own")
    kept = np.flatnonzero(stands)
    sample = train_rows.take(pa.array(kept)).append_column("weight", pa.array(stands[kept]))
    plain = fit(sample, RandomEffect("own", entity="user", features="row"))
    np.testing.assert_allclose(plain.predict(train_rows), model.predict(train_rows), atol=1e-8)


def test_all_rows_are_scored_and_count_for_the_others(train_rows: pa.Table) -> None:
    coordinates = [
        FixedEffect("g", features="row", negative_sampling=0.5),
        RandomEffect("u", entity="user", features="row", negative_sampling=0.5, max_active_rows=20),
    ]
    model = fit(train_rows, *coordinates, passes=3)
    workspace = prepare(train_rows, *coordinates, passes=3)
    components = model.predict(train_rows, kind="components")
    for name, coordinate in workspace.coordinates.items():
        scores = coordinate.score(model.model_.coordinates[name]).train
        np.testing.assert_allclose(scores, components[name], atol=1e-12)
        assert scores.all()


def test_order_of_rows_and_threads_do_not_matter(train_rows: pa.Table) -> None:
    coordinates = [
        FixedEffect("g", features="row", negative_sampling=0.5),
        RandomEffect("u", entity="user", features="row", negative_sampling=0.5),
    ]
    model = fit(train_rows, *coordinates, threads=1)
    order = np.random.default_rng(0).permutation(train_rows.num_rows)
    moved = fit(train_rows.take(pa.array(order)), *coordinates, threads=3)
    np.testing.assert_allclose(moved.predict(train_rows), model.predict(train_rows), atol=1e-8)


def test_on_average_it_is_the_model_of_all_rows(train_rows: pa.Table) -> None:
    def slope(seed: int, share: float | None) -> float:
        model = fit(
            train_rows, FixedEffect("g", features="row", negative_sampling=share), seed=seed
        )
        return float(model.coefficients("g")["value"][1].as_py())

    found = [slope(seed, 0.7) for seed in range(30)]
    assert len(set(found)) == 30
    assert abs(np.mean(found) - slope(0, None)) < 4 * np.std(found) / np.sqrt(30) + 0.01


def test_features_of_negatives_that_are_left_out_are_not_recentred() -> None:
    n = 400
    rng = np.random.default_rng(0)
    response = rng.integers(0, 2, n)
    rows = pa.table(
        {
            "uid": np.arange(n),
            "user": rng.integers(0, 8, n),
            "x": rng.normal(size=n),
            # A feature of negatives alone: some user has it in passive rows only.
            "kind": [f"k{i % 40}" if y == 0 else "p" for i, y in enumerate(response)],
            "tags": pa.array([["a"]] * n),
            "response": response,
        }
    )
    fixed = FixedEffect("g", features="row")
    random = RandomEffect("u", entity="user", features="row", negative_sampling=0.3)
    workspace = prepare(rows, fixed, random, passes=2)
    assert workspace.coordinates["u"].uncovered.any()
    models = {}
    for name, coordinate in workspace.coordinates.items():
        models[name], _ = coordinate.fit(workspace.scores.total_without(name), None)
        workspace.scores.put(name, coordinate.score(models[name]))

    def total(of: Any) -> NDArray[np.float64]:
        return np.sum([c.score(of[n]).train for n, c in workspace.coordinates.items()], axis=0)

    np.testing.assert_allclose(total(workspace.recentre(models)), total(models), atol=1e-12)


@pytest.mark.parametrize(
    ("parameters", "share", "text"),
    [
        ({"task": "poisson_regression"}, 0.5,
         "coordinates.g.negative_sampling: is for logistic_regression, not poisson_regression"),
        ({"solver": "joint"}, 0.5, "solver 'joint' fits all rows at once"),
        ({}, 0.0, "negative_sampling: should be greater than 0"),
        ({}, 1.0, "negative_sampling: should be less than 1"),
    ],
)  # fmt: skip
def test_mistakes(parameters: dict[str, Any], share: float, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        MixedModel([FixedEffect("g", negative_sampling=share)], **parameters)
