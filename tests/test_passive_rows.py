"""Models that are trained on some rows of an entity and scored on all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gdmix import FixedEffect, MixedModel, ModelError, RandomEffect
from gdmix.config import ModelConfig
from gdmix.engines.local import LocalEngine, LocalWorkspace
from gdmix.model.coefficients import RandomCoefficients

FEATURES = {"row": ["x", "kind"], "tags": ["tags"]}
GLOBAL = FixedEffect("global", features=["row", "tags"])
LIMITED = RandomEffect(
    "per-user", entity="user", features=["row", "tags"], min_active_rows=20, max_active_rows=25
)
PER_ITEM = RandomEffect("per-item", entity="item")


def fit(rows: pa.Table, *coordinates: Any, **parameters: Any) -> MixedModel:
    model = MixedModel(list(coordinates), features=FEATURES, **parameters)
    return model.fit(rows)


def prepare(rows: pa.Table, *coordinates: Any, **parameters: Any) -> LocalWorkspace:
    config = ModelConfig.of(coordinates=list(coordinates), features=FEATURES, **parameters)
    return LocalEngine().prepare(config, rows, None)


def counts_of(rows: pa.Table) -> dict[int, int]:
    users, counts = np.unique(rows["user"].to_numpy(), return_counts=True)
    return dict(zip(users.tolist(), counts.tolist(), strict=True))


def test_an_entity_with_too_few_rows_has_no_model_and_scores_zero(train_rows: pa.Table) -> None:
    model = fit(train_rows, GLOBAL, LIMITED, passes=2)
    counts = counts_of(train_rows)
    rare = [user for user, n in counts.items() if n < 20]
    assert 0 < len(rare) < len(counts)
    assert set(model.coefficients("per-user")["entity"].to_pylist()) == set(counts) - set(rare)
    with pytest.raises(ModelError, match="has no model of entity"):
        model.coefficients("per-user", entity=rare[0])
    scores = model.predict(train_rows, kind="components")["per-user"]
    of_rare = np.isin(train_rows["user"].to_numpy(), rare)
    assert not scores[of_rare].any()
    assert scores[~of_rare].all()


def test_a_model_is_that_of_its_active_rows(train_rows: pa.Table) -> None:
    # One user, one pass: the same as a fit to the sample with the weights of the whole.
    n = train_rows.num_rows
    one_user = train_rows.drop_columns(["user"]).append_column("user", pa.array(np.zeros(n, int)))
    spec = RandomEffect("own", entity="user", features="row", max_active_rows=100)
    model = fit(one_user, spec)
    workspace = prepare(one_user, spec)
    order = workspace.coordinates["own"]._rows.rows.order
    assert order.size == 100
    sample = one_user.take(pa.array(order))
    weighted = sample.append_column("weight", pa.array(np.full(100, n / 100)))
    for rows, expected in (
        (weighted, model),
        (sample, fit(one_user, spec.model_copy(update={"reweight": False}))),
    ):
        plain = fit(rows, RandomEffect("own", entity="user", features="row"))
        np.testing.assert_allclose(plain.predict(one_user), expected.predict(one_user), atol=1e-9)


def test_training_scores_are_those_of_the_model(train_rows: pa.Table) -> None:
    for passes in (1, 3):
        model = fit(train_rows, GLOBAL, LIMITED, PER_ITEM, passes=passes)
        workspace = prepare(train_rows, GLOBAL, LIMITED, PER_ITEM, passes=passes)
        for name, scores in model.predict(train_rows, kind="components").items():
            trained = workspace.coordinates[name].score(model.model_.coordinates[name])
            np.testing.assert_allclose(trained.train, scores, atol=1e-12)


@pytest.mark.parametrize(
    "change",
    [{}, {"min_active_rows": 1}, {"max_active_rows": None}, {"max_active_rows": 20}],
)
def test_recentring_keeps_the_scores_of_all_rows(
    train_rows: pa.Table, change: dict[str, Any]
) -> None:
    # A tag that few rows have: some passive row has it, and its entity's active rows do not.
    spec = LIMITED.model_copy(update=change)
    workspace = prepare(train_rows, GLOBAL, spec, PER_ITEM)
    models = {}
    for name, coordinate in workspace.coordinates.items():
        models[name], _ = coordinate.fit(np.zeros(train_rows.num_rows), None)
    moved = workspace.recentre(models)
    before, after = (
        sum(c.score(of[name]).train for name, c in workspace.coordinates.items())
        for of in (models, moved)
    )
    np.testing.assert_allclose(after, before, atol=1e-12)
    before, after = (
        sum(c.penalty(of[name]) for name, c in workspace.coordinates.items())
        for of in (models, moved)
    )
    assert after < before  # the items' intercepts, at least


def test_what_passive_rows_have_in_common_with_their_models_is_recentred(
    train_rows: pa.Table,
) -> None:
    # Every sample has the intercept and x.
    numeric = FixedEffect("global", features="row")
    spec = RandomEffect("per-user", entity="user", features="row", max_active_rows=20)
    workspace = prepare(train_rows, numeric, spec)
    assert not workspace.coordinates["per-user"].uncovered[:2].any()
    rare = spec.model_copy(update={"min_active_rows": 20})
    assert prepare(train_rows, numeric, rare).coordinates["per-user"].uncovered.all()


def test_the_joint_step_minimises_the_objective_over_all_rows(train_rows: pa.Table) -> None:
    parts = GLOBAL, LIMITED, PER_ITEM
    model = fit(train_rows, *parts, solver="joint", passes=2)
    assert model.converged_
    workspace = prepare(train_rows, *parts, solver="joint")
    response = train_rows["response"].to_numpy()
    best = model.model_.coordinates

    def objective(models: Any) -> float:
        z = sum(workspace.coordinates[n].score(m).train for n, m in models.items())
        penalty = sum(workspace.coordinates[n].penalty(m) for n, m in models.items())
        return float(np.sum(np.logaddexp(0.0, z) - response * z) + penalty)

    least = objective(best)
    assert least == pytest.approx(model.history_[-1].objective, rel=1e-12)
    rng = np.random.default_rng(0)
    for name, part in best.items():
        for _ in range(3):
            step = rng.normal(size=part.coefficients.values.size)

            def moved(size: float, name: str = name, part: Any = part, step: Any = step) -> float:
                values = part.coefficients.values + size * step
                coefficients = part.coefficients.__class__(
                    **{**part.coefficients.__dict__, "values": values}
                )
                changed = part.__class__(**{**part.__dict__, "coefficients": coefficients})
                return objective({**best, name: changed})

            assert abs(moved(1e-4) - moved(-1e-4)) / 2e-4 < 1e-4
            assert moved(0.1) > least


def test_dense_features(train_rows: pa.Table) -> None:
    n = train_rows.num_rows
    vectors = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    dense = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 3)
    rows = train_rows.append_column("vector", dense)
    for k in range(3):
        rows = rows.append_column(f"v{k}", pa.array(vectors[:, k]))
    settings = {"min_active_rows": 20, "max_active_rows": 25}
    predictions = []
    for columns in (["vector"], ["v0", "v1", "v2"]):
        bags = {"all": columns}
        spec = RandomEffect("per-user", entity="user", features="all", **settings)
        for solver in ("descent", "joint"):
            model = MixedModel([FixedEffect("global", features="all"), spec], features=bags,
                               passes=3, solver=solver).fit(rows)  # fmt: skip
            predictions.append(model.predict(rows))
        config = ModelConfig.of(coordinates=[spec], features=bags)
        workspace = LocalEngine().prepare(config, rows, None)
        trained = workspace.coordinates["per-user"].score(model.model_.coordinate("per-user"))
        components = model.predict(rows, kind="components")["per-user"]
        np.testing.assert_allclose(trained.train, components, atol=1e-9)
        assert workspace.coordinates["per-user"].uncovered.all()
    for one, other in zip(predictions[:2], predictions[2:], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_no_entity_has_enough_rows(train_rows: pa.Table, caplog: Any) -> None:
    none = RandomEffect("per-user", entity="user", features="row", min_active_rows=1000)
    for solver in ("descent", "joint"):
        model = fit(train_rows, GLOBAL, none, passes=2, solver=solver)
        coefficients = model.model_.coordinates["per-user"].coefficients
        assert isinstance(coefficients, RandomCoefficients)
        assert len(coefficients) == 0
        assert not model.predict(train_rows, kind="components")["per-user"].any()
    assert "per-user: 25 of 25 entities have too few rows for a model" in caplog.text


def test_threads_and_order_of_rows_do_not_show(train_rows: pa.Table) -> None:
    one = fit(train_rows, GLOBAL, LIMITED, passes=2, threads=1)
    order = np.random.default_rng(0).permutation(train_rows.num_rows)
    two = fit(train_rows.take(pa.array(order)), GLOBAL, LIMITED, passes=2, threads=2)
    np.testing.assert_allclose(one.predict(train_rows), two.predict(train_rows), atol=1e-7)
    other = fit(train_rows, GLOBAL, LIMITED, passes=2, seed=1)
    assert np.abs(one.predict(train_rows) - other.predict(train_rows)).max() > 1e-3
