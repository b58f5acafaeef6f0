"""Same rows, same configuration: the same model, scores and metrics, whichever engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from contract_rows import (
    FEATURES,
    HEAVY,
    LINEAR,
    POISSON,
    Data,
    Outcome,
    assert_same,
    config_of,
    make_rows,
    outcome_of,
    reference_of,
)

from gdmix import CustomEffect, ExternalScores, Factorization, FixedEffect, RandomEffect
from gdmix.config import ModelConfig
from gdmix.engines.base import Engine
from gdmix.errors import ConfigError
from gdmix.model.linear import LinearModel
from gdmix.model.store import write_model

ROLES = {"weight": "importance", "offset": "base"}
GLOBAL = FixedEffect("global", features=["row", "more", "dense"], l2=2.0)
PER_USER = RandomEffect("per-user", entity="user", features=["row", "dense"], l2=3.0)
PER_ITEM = RandomEffect("per-item", entity="item", features=["more"], l2=2.0)
ALL = (GLOBAL, PER_USER, PER_ITEM)


def changed(spec: Any, **fields: Any) -> Any:
    return spec.model_copy(update=fields)


@pytest.fixture(scope="module")
def train(tables: dict[str, pa.Table]) -> pa.Table:
    return tables["train"]


@pytest.fixture(scope="module")
def validation(tables: dict[str, pa.Table]) -> pa.Table:
    return tables["validation"]


@pytest.fixture
def both(engine: Engine, data: Data, train: pa.Table, validation: pa.Table) -> Any:
    """Train from files with the engine, from frames in memory with the reference."""

    def compare(config: ModelConfig, validate: bool = True) -> Outcome:
        judged = validation if validate else None
        found = outcome_of(engine, config, data.train, data.validation if validate else None)
        assert_same(found, reference_of(config, train, judged))
        return found

    return compare


def test_weights_offsets_passes_and_grouped_metrics(both: Any) -> None:
    metrics = ["auc", "aupr", "logloss", "auc:user", "precision@2:item", "ndcg@3:user", "mrr:item"]
    both(config_of(*ALL, columns=ROLES, passes=2, metrics=metrics))


def test_linear_task_with_uncertainty_and_no_validation(both: Any) -> None:
    """The dispersion takes the degrees of freedom of all coordinates."""
    both(
        config_of(
            changed(GLOBAL, variance="full", save_hessian=True),
            changed(PER_USER, variance="simple", save_hessian=True),
            changed(PER_ITEM, variance="full"),
            task=LINEAR,
            columns=ROLES,
        ),
        validate=False,
    )


def test_poisson_task_with_uncertainty_where_rows_have_no_uid(
    engine: Engine, train: pa.Table, validation: pa.Table, tmp_path: Path
) -> None:
    parts = [
        changed(GLOBAL, variance="simple"),
        changed(PER_USER, variance="full", max_active_rows=20),
        changed(PER_ITEM, save_hessian=True),
    ]
    config = config_of(*parts, task=POISSON, columns=ROLES, tolerance=1e-2, passes=3)
    rows = [t.drop_columns(["uid"]) for t in (train, validation)]
    data = Data.write(tmp_path / "rows", *rows)
    found = outcome_of(engine, config, data.train, data.validation)
    assert_same(found, reference_of(config, *rows))
    assert found.scores["global", "train_scores"]["uid"].to_pylist() == list(range(320))


def test_active_and_passive_rows(both: Any) -> None:
    """A sample of rows is that of seed and uid: the same wherever the rows lie."""
    both(
        config_of(
            changed(GLOBAL, negative_sampling=0.6),
            changed(PER_USER, min_active_rows=9, max_active_rows=14),
            changed(PER_ITEM, max_active_rows=20, reweight=False, negative_sampling=0.5),
            RandomEffect(
                "selected", entity="user", features=["row", "more"], features_to_samples_ratio=0.3
            ),
            columns=ROLES,
            passes=2,
            seed=5,
        )
    )


def test_selected_features(both: Any, earlier: Path) -> None:
    """Rare ones are left out, and those that the response goes with least."""
    features = {
        "row": {"columns": ["x", "kind"], "min_count": 100},
        "more": {"columns": ["tags"], "min_count": 2, "max_features": 2},
        "dense": ["embedding"],
    }
    found = both(config_of(*ALL, columns=ROLES, features=features, passes=2))
    sizes = {bag: len(index) for bag, index in found.model.indices.items()}
    assert sizes["row"] < 4 and sizes["more"] == 2
    # What a locked model knows stays.
    parts = [GLOBAL, changed(PER_ITEM, locked=True)]
    config = config_of(*parts, columns=ROLES, features=features, initial_model=earlier)
    assert len(both(config).model.indices["more"]) > 2


def test_selection_from_lists_of_fixed_size(engine: Engine, data: Data) -> None:
    config = config_of(
        GLOBAL, features={**FEATURES, "dense": {"columns": ["embedding"], "min_count": 2}}
    )
    with pytest.raises(ConfigError, match=r"features.dense.min_count: column 'embedding' holds"):
        engine.prepare(config, data.train, None)


def test_penalties_and_normalization(both: Any) -> None:
    both(
        config_of(
            FixedEffect(
                "scaled",
                features=["row", "more", "dense"],
                l2={"row": 0.5, "more": 3.0, "dense": 1.0},
                intercept_l2=0.0,
                normalization="standardize",
                penalty_factors={"x": 0.0, "tags:p": 5.0},
            ),
            RandomEffect(
                "by-user",
                entity="user",
                features=["row", "dense"],
                l2={"row": 2.0, "dense": 4.0},
                intercept_l2=1.0,
                normalization="scale_by_std",
                penalty_factors={"kind:b": 3.0},
            ),
            RandomEffect(
                "by-item", entity="item", features=["dense"], normalization="scale_by_max"
            ),
            columns=ROLES,
        )
    )


def test_l1_and_bounds(both: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "gdmix")
    found = both(
        config_of(
            FixedEffect(
                "sparse",
                features=["row", "more"],
                l1=4.0,
                l2=1.0,
                intercept_l2=3.0,
                normalization="standardize",
            ),
            FixedEffect(
                "centred", features=["row"], l2=1.0, intercept_l2=2.0, normalization="standardize"
            ),
            FixedEffect(
                "bounded",
                features=["dense"],
                intercept=False,
                bounds={"embedding:0": [None, 0.1], "embedding:1": [0.0, None]},
            ),
            changed(PER_USER, l1=0.5),
            changed(PER_ITEM, l1=1.0),
            columns=ROLES,
        )
    )
    values = found.model.coordinate("bounded").coefficients.values
    assert values[1] == pytest.approx(0.1)
    assert values[2] == 0.0
    assert "one task" not in caplog.text


def test_l1_where_columns_are_more_than_a_shard_meets(both: Any) -> None:
    hashed = {"columns": ["x", "kind", "tags", "item", "user"], "hash_buckets": 5000}
    wide = FixedEffect(
        "wide",
        features=["hashed"],
        l1=0.3,
        l2=0.5,
        normalization="scale_by_max",
        tolerance=1e-11,  # the two ways to the optimum differ in more than the order of sums
    )
    settings = {"columns": ROLES, "passes": 2, "features": {**FEATURES, "hashed": hashed}}
    found = both(config_of(wide, PER_USER, **settings))
    values = found.model.coordinate("wide").coefficients.values
    assert values.size == 5001
    assert 5 < np.count_nonzero(values) < 30


def test_best_model_early_stopping_and_derived_entities(both: Any) -> None:
    weak = {"l2": 0.01}
    both(
        config_of(
            changed(GLOBAL, **weak),
            RandomEffect("per-age", entity={"column": "age", "bins": [25, 40, 55]}, **weak),
            RandomEffect(
                "per-pair",
                entity=["user", {"column": "age", "bins": [40]}],
                features=["row", "dense"],
                **weak,
            ),
            RandomEffect("per-kind", entity=["item", "user"], **weak),
            columns=ROLES,
            passes=6,
            select="best",
            early_stopping=1,
            metrics=["logloss", "auc"],
        )
    )


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of other rows: entities and features that these rows lack, and not all of theirs."""
    rows = make_rows(300, seed=9, new=3)
    kinds = [None if kind == "a" else kind or "z" for kind in rows["kind"].to_pylist()]
    rows = rows.set_column(rows.schema.get_field_index("kind"), "kind", pa.array(kinds))
    rows = rows.filter(pa.compute.greater(rows["user"], 5))
    parts = [
        changed(GLOBAL, variance="full", save_hessian=True),
        changed(PER_USER, variance="simple"),
        changed(PER_ITEM, save_hessian=True),
    ]
    found = reference_of(config_of(*parts, columns=ROLES, passes=2), rows)
    folder = tmp_path_factory.mktemp("earlier") / "model"
    write_model(found.model, folder)
    return folder


def test_warm_start(both: Any, earlier: Path) -> None:
    """Models of entities without rows are kept, features that are gone are not."""
    found = both(config_of(*ALL, columns=ROLES, passes=2, initial_model=earlier))
    entities = {
        n: m.coefficients.entities.to_pylist() for n, m in linear(found).items() if m.entity
    }
    assert max(entities["per-user"]) > 3 * 17 + 1
    assert "item-11" in entities["per-item"]


def test_an_earlier_model_of_giant_entities(
    engine: Engine, data: Data, train: pa.Table, validation: pa.Table, tmp_path: Path
) -> None:
    """One user has a third of the rows: few of them train, none, or its earlier model is kept."""
    specs = [
        changed(PER_USER, max_active_rows=14, variance="simple"),
        # All rows of the giant are left out of training.
        changed(PER_USER, name="thinned", negative_sampling=1e-6),
        changed(PER_ITEM, max_active_rows=12, negative_sampling=0.7),
    ]
    config = config_of(*specs, columns=ROLES, passes=2)
    write_model(reference_of(config, make_rows(300, seed=9)).model, tmp_path / "earlier")
    config = config_of(*specs, columns=ROLES, passes=2, initial_model=tmp_path / "earlier")
    response = np.where(train["user"].to_numpy() == HEAVY, 0, train["response"].to_numpy())
    place = train.schema.get_field_index("response")
    rows = train.set_column(place, "response", pa.array(response))
    files = Data.write(tmp_path / "rows", rows, validation)
    found = outcome_of(engine, config, files.train, files.validation)
    assert_same(found, reference_of(config, rows, validation))


def test_locked_coordinates(both: Any, earlier: Path) -> None:
    parts = [
        changed(GLOBAL, locked=True),
        PER_USER,
        changed(PER_ITEM, locked=True),
        FixedEffect("more", features=["more"]),
    ]
    both(config_of(*parts, columns=ROLES, passes=2, initial_model=earlier))


def test_prior(both: Any, earlier: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Precisions come from Hessians, variances, or the weights alone."""
    caplog.set_level("INFO", "gdmix")
    prior = {"model": earlier, "weight": 0.7, "forgetting": 0.9}
    certain = changed(GLOBAL, variance="full")
    both(config_of(certain, PER_USER, PER_ITEM, columns=ROLES, passes=2, prior=prior))
    assert "one task" not in caplog.text


def test_a_prior_of_variances(both: Any, tmp_path: Path) -> None:
    """Without an intercept, too, and under other weights."""
    spread = changed(GLOBAL, name="spread", features=("more",), intercept=False)
    rows = make_rows(300, seed=9, new=3)
    parts = [changed(GLOBAL, variance="full"), changed(spread, variance="simple")]
    write_model(reference_of(config_of(*parts, columns=ROLES, passes=2), rows).model, tmp_path)
    prior = {"model": tmp_path, "weight": 0.7, "forgetting": 0.8}
    parts = [
        changed(GLOBAL, variance="simple", normalization="scale_by_std", negative_sampling=0.6),
        changed(spread, penalty_factors={"tags": 0.2}),
        PER_USER,
    ]
    both(config_of(*parts, columns=ROLES, passes=2, prior=prior))


def linear(found: Outcome) -> dict[str, LinearModel]:
    return found.model.linear


def test_scores_from_files(
    both: Any, train: pa.Table, validation: pa.Table, tmp_path: Path
) -> None:
    paths = {}
    for role, rows in (("train", train), ("validation", validation)):
        scores = {"id": rows["uid"], "own": np.sin(rows["uid"].to_numpy().astype(float))}
        table = pa.table(scores).take(np.random.default_rng(3).permutation(rows.num_rows)[5:])
        paths[role] = tmp_path / f"{role}.parquet"
        pa.parquet.write_table(table, paths[role])
    external = ExternalScores("deep", uid="id", score="own", missing="zero", **paths)
    both(config_of(external, GLOBAL, PER_ITEM, columns=ROLES))


def test_coordinates_that_one_task_fits(both: Any) -> None:
    both(
        config_of(
            CustomEffect(
                "own",
                estimator="contract_estimators.LeastSquares",
                params={"l2": 2.0},
                features=["row", "dense"],
                dense=True,
            ),
            changed(PER_USER, features=("row",)),
            Factorization("taste", entities=["user", "item"], rank=2, features={"item": "more"}),
            task=LINEAR,
            columns=ROLES,
        )
    )


def test_features_hashed_and_listed(both: Any, tmp_path: Path) -> None:
    features = {
        "row": {"columns": ["x", "kind"], "hash_buckets": 16},
        "more": ["tags"],
        "dense": ["embedding"],
    }
    both(config_of(*ALL, columns=ROLES, features=features))


def test_an_entity_without_rows_of_weight(engine: Engine, train: pa.Table) -> None:
    """Rows of weight 0, rows of one class, and a coordinate of few entities in many partitions."""
    weight = np.where(train["user"].to_numpy() == 10, 0.0, 1.0)
    rows = train.append_column("weight", pa.array(weight))
    parts = [GLOBAL, PER_USER, RandomEffect("few", entity={"column": "age", "bins": [69]})]
    config = config_of(*parts)
    assert_same(outcome_of(engine, config, rows), reference_of(config, rows))


def test_estimated_weights(both: Any) -> None:
    parts = [changed(s, l2="auto") for s in (GLOBAL, changed(PER_USER, features=("row",)))]
    both(config_of(*parts, PER_ITEM, columns=ROLES, passes=2))
