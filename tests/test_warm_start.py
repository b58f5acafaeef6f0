"""A run that starts from an earlier model, and coordinates that are kept as they are in it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from gdmix import (
    ConfigError,
    DataError,
    FixedEffect,
    MixedModel,
    ModelError,
    RandomEffect,
    RunConfig,
)
from gdmix.config import ModelConfig
from gdmix.convert import convert_model
from gdmix.engines.local import LocalEngine, LocalWorkspace
from gdmix.model.store import read_model, write_model
from gdmix.runs import run

FEATURES = {"row": ["x", "kind"], "tags": ["tags"]}
GLOBAL = FixedEffect("global", features=["row", "tags"])
PER_USER = RandomEffect("per-user", entity="user", features=["tags", "row"], l2=2.0)
PER_ITEM = RandomEffect("per-item", entity="item")
ALL = (GLOBAL, PER_USER, PER_ITEM)


def make(*coordinates: Any, **parameters: Any) -> MixedModel:
    return MixedModel(list(coordinates or ALL), features=FEATURES, **parameters)


def prepare(rows: Any, *coordinates: Any, **parameters: Any) -> LocalWorkspace:
    config = ModelConfig.of(coordinates=list(coordinates or ALL), features=FEATURES, **parameters)
    return LocalEngine().prepare(config, rows, None)


def objective_at_start(workspace: LocalWorkspace) -> float:
    for name, model in workspace.start.items():
        workspace.scores.put(name, workspace.coordinates[name].score(model))
    penalty = sum(workspace.coordinates[n].penalty(m) for n, m in workspace.start.items())
    return workspace.scores.loss() + penalty


def locked(spec: Any) -> Any:
    return spec.model_copy(update={"locked": True})


@pytest.fixture
def earlier(train_rows: pa.Table, tmp_path: Path) -> MixedModel:
    """A finished model, saved as `model`."""
    model = make(passes=2).fit(train_rows)
    model.save(tmp_path / "model")
    return model


def table_of(model: MixedModel, name: str) -> dict[tuple[Any, str, str], float]:
    rows = model.coefficients(name).to_pylist()
    return {(r.get("entity"), r["name"], r["term"]): r["value"] for r in rows}


# Warm start


@pytest.mark.parametrize("keep", [(GLOBAL,), (PER_USER, PER_ITEM)])
def test_what_is_kept_counts_in_the_objective(
    train_rows: pa.Table, earlier: MixedModel, tmp_path: Path, keep: Any
) -> None:
    parts = [locked(s) if s in keep else s for s in ALL]
    workspace = prepare(train_rows, *parts, initial_model=tmp_path / "model")
    stopped = earlier.history_[-1].objective
    assert objective_at_start(workspace) == pytest.approx(stopped, rel=1e-12)
    rare = PER_USER.model_copy(update={"min_active_rows": 24})
    parts = [GLOBAL, rare, PER_ITEM]
    workspace = prepare(train_rows, *parts, initial_model=tmp_path / "model")
    assert objective_at_start(workspace) == pytest.approx(stopped, rel=1e-12)


@pytest.mark.parametrize("solver", ["descent", "joint"])
@pytest.mark.parametrize("limit", [None, 10])
def test_a_run_goes_on_where_its_own_model_stopped(
    train_rows: pa.Table, tmp_path: Path, solver: Any, limit: int | None
) -> None:
    parts = GLOBAL, PER_USER.model_copy(update={"max_active_rows": limit}), PER_ITEM
    first = make(*parts, passes=2, solver=solver).fit(train_rows)
    first.save(tmp_path / "model")
    workspace = prepare(train_rows, *parts, initial_model=tmp_path / "model")
    assert list(workspace.start) == ["global", "per-user", "per-item"]
    stopped = first.history_[-1].objective
    assert objective_at_start(workspace) == pytest.approx(stopped, rel=1e-12)
    second = make(*parts, initial_model=tmp_path / "model").fit(train_rows)
    if limit is None:
        objectives = [stopped, *(s.objective for s in second.history_)]
        assert objectives == sorted(objectives, reverse=True)


@pytest.mark.parametrize("kind", ["avro", "photon"])
def test_a_run_goes_on_from_its_own_avro_model(
    train_rows: pa.Table, earlier: MixedModel, tmp_path: Path, kind: Any
) -> None:
    convert_model(tmp_path / "model", tmp_path / kind, kind)
    workspace = prepare(train_rows, initial_model=tmp_path / kind)
    stopped = earlier.history_[-1].objective
    assert objective_at_start(workspace) == pytest.approx(stopped, rel=1e-12)


def test_scores_count_from_the_first_step_on(
    train_rows: pa.Table, earlier: MixedModel, tmp_path: Path
) -> None:
    # The fixed effect comes first and is fitted next to the others' scores.
    model = make(initial_model=tmp_path / "model").fit(train_rows)
    others = earlier.predict(train_rows, kind="components")
    offset = pa.array(others["per-user"] + others["per-item"])
    alone = make(GLOBAL).fit(train_rows.append_column("offset", offset))
    step, wanted = model.history_[0], alone.history_[0]
    assert step.metrics == pytest.approx(wanted.metrics, abs=1e-6)


def test_warm_passes_and_cold_ones_end_at_the_same_optimum(
    train_rows: pa.Table, earlier: MixedModel, tmp_path: Path
) -> None:
    cold = make(solver="joint").fit(train_rows)
    warm = make(solver="joint", initial_model=str(tmp_path / "model")).fit(train_rows)
    np.testing.assert_allclose(warm.predict(train_rows), cold.predict(train_rows), atol=1e-6)


def test_new_features_and_entities_start_at_zero(
    train_rows: pa.Table, earlier: MixedModel, tmp_path: Path
) -> None:
    n = train_rows.num_rows
    user = train_rows["user"].to_numpy() + 20  # 20 to 44: five of them are known
    kind = ["0" if k == "a" else k for k in train_rows["kind"].to_pylist()]  # new, and first
    changed = train_rows.drop_columns(["user", "kind"]).append_column("user", pa.array(user))
    changed = changed.append_column("kind", pa.array(kind))
    workspace = prepare(changed, initial_model=tmp_path / "model")
    start = MixedModel(list(ALL), features=FEATURES)
    start.model_ = replace(workspace.trained_model(workspace.start), coordinates=workspace.start)
    before = {name: table_of(earlier, name) for name in ("global", "per-user", "per-item")}
    for name in before:
        for key, value in table_of(start, name).items():
            assert value == before[name].get(key, 0.0)
    assert ("kind", "0") in {key[1:] for key in table_of(start, "global")}
    entities = start.coefficients("per-user")["entity"].to_pylist()
    assert set(entities) == set(user.tolist())
    assert n == changed.num_rows


def test_stale_features_are_counted_and_skipped(
    train_rows: pa.Table, earlier: MixedModel, tmp_path: Path, caplog: Any
) -> None:
    rows = train_rows.filter(pc.not_equal(train_rows["kind"], "a"))
    model = make(initial_model=tmp_path / "model", passes=2).fit(rows)
    assert ("kind", "a") not in {key[1:] for key in table_of(model, "global")}
    text = "initial model: coordinate 'global': skipped 1 coefficients of 1 features that"
    assert text in caplog.text
    assert "coordinate 'per-user': skipped 25 coefficients of 1 features" in caplog.text


def test_entities_without_rows_keep_their_models(
    train_rows: pa.Table, validation_rows: pa.Table, earlier: MixedModel, tmp_path: Path
) -> None:
    rows = train_rows.filter(pc.less(train_rows["user"], 10))
    model = make(initial_model=tmp_path / "model", passes=3).fit(rows, validation=validation_rows)
    before, after = table_of(earlier, "per-user"), table_of(model, "per-user")
    users = model.coefficients("per-user")["entity"].to_pylist()
    assert users == sorted(users)
    assert set(users) == set(range(25))
    for key, value in before.items():
        assert (after.get(key) == value) == (key[0] >= 10)
    # They count in the metrics of other rows.
    link = model.predict(validation_rows, kind="link")
    response = validation_rows["response"].to_numpy()
    logloss = np.mean(np.logaddexp(0.0, link) - response * link)
    assert model.history_[-1].metrics["logloss"] == pytest.approx(logloss, abs=1e-12)


@pytest.mark.parametrize("solver", ["descent", "joint"])
def test_entities_with_too_few_rows_keep_their_models(
    train_rows: pa.Table, earlier: MixedModel, tmp_path: Path, solver: Any
) -> None:
    rare = PER_USER.model_copy(update={"min_active_rows": 24})
    parts = GLOBAL, rare, PER_ITEM
    model = make(*parts, initial_model=tmp_path / "model", passes=2, solver=solver)
    model.fit(train_rows)
    counts = np.bincount(train_rows["user"].to_numpy())
    before, after = table_of(earlier, "per-user"), table_of(model, "per-user")
    assert set(after) == set(before)
    for key, value in before.items():
        assert (after[key] == value) == (counts[key[0]] < 24)
    # Their rows are scored with them while the rest is trained.
    assert model.history_[-1].metrics["logloss"] == pytest.approx(logloss_of(model, train_rows))


def logloss_of(model: MixedModel, rows: pa.Table) -> float:
    link, response = model.predict(rows, kind="link"), rows["response"].to_numpy()
    return float(np.mean(np.logaddexp(0.0, link) - response * link))


def test_coordinates_that_the_model_lacks_or_the_run_leaves_out(
    train_rows: pa.Table, earlier: MixedModel, tmp_path: Path, caplog: Any
) -> None:
    extra = RandomEffect("per-kind", entity="kind")
    model = make(GLOBAL, extra, initial_model=tmp_path / "model").fit(train_rows)
    assert list(model.model_.coordinates) == ["global", "per-kind"]
    for name in ("per-user", "per-item"):
        assert f"initial model: coordinate '{name}' is not one of this run: left out" in caplog.text


def test_bags_in_another_order_are_the_same(
    train_rows: pa.Table, earlier: MixedModel, tmp_path: Path
) -> None:
    other = FixedEffect("global", features=["tags", "row"])
    workspace = prepare(train_rows, other, PER_USER, PER_ITEM, initial_model=tmp_path / "model")
    stopped = earlier.history_[-1].objective
    assert objective_at_start(workspace) == pytest.approx(stopped, rel=1e-9)


# Locked coordinates


@pytest.mark.parametrize("solver", ["descent", "joint"])
def test_a_locked_coordinate_stays_as_it_is(
    train_rows: pa.Table,
    validation_rows: pa.Table,
    earlier: MixedModel,
    tmp_path: Path,
    solver: Any,
) -> None:
    # Rows in which neither all entities nor all features of the model occur.
    rows = train_rows.filter(pc.not_equal(train_rows["kind"], "a"))
    rows = rows.filter(pc.less(rows["user"], 10))
    for name, spec in {s.name: s for s in ALL}.items():
        parts = [locked(s) if s is spec else s for s in ALL]
        model = make(*parts, initial_model=tmp_path / "model", passes=3, solver=solver)
        model.fit(rows, validation=validation_rows)
        assert list(model.model_.coordinates) == ["global", "per-user", "per-item"]
        assert table_of(model, name) == table_of(earlier, name)
        fitted = {s.coordinate for s in model.history_} - {"joint"}
        assert fitted == {s.name for s in ALL} - {name}
        components = model.predict(validation_rows, kind="components")[name]
        expected = earlier.predict(validation_rows, kind="components")[name]
        np.testing.assert_allclose(components, expected, atol=1e-12)
        assert model.history_[-1].metrics["logloss"] == pytest.approx(
            logloss_of(model, validation_rows)
        )


def test_a_locked_coordinate_is_an_offset(
    train_rows: pa.Table, earlier: MixedModel, tmp_path: Path
) -> None:
    for solver in ("descent", "joint"):
        parts = locked(GLOBAL), PER_USER, PER_ITEM
        model = make(*parts, initial_model=tmp_path / "model", passes=60, tolerance=1e-12,
                     solver=solver).fit(train_rows)  # fmt: skip
        offset = pa.array(earlier.predict(train_rows, kind="components")["global"])
        plain = make(PER_USER, PER_ITEM, passes=60, tolerance=1e-12, solver=solver)
        rows = train_rows.append_column("offset", offset)
        expected = plain.fit(rows).predict(rows)
        np.testing.assert_allclose(model.predict(train_rows), expected, atol=1e-5)


def test_a_run_folder_is_refreshed_in_place(project: Path) -> None:
    def refresh(**overrides: str) -> list[float]:
        config = RunConfig.from_yaml(Path("run.yaml"), overrides)
        return [step["objective"] for step in run(config, overwrite=True).steps]

    first = refresh()
    second = refresh(initial_model="runs/one")
    assert first[-1] >= second[0] >= second[-1]
    assert second[0] > refresh(initial_model="runs/one")[0]


# What does not fit


@pytest.mark.parametrize(
    ("coordinates", "parameters", "message"),
    [
        (ALL, {"task": "poisson_regression"},
         "initial_model: its task is logistic_regression, that of this run poisson_regression"),
        ((RandomEffect("global", entity="user"), PER_USER), {},
         "coordinates.global: type is random_effect, in initial_model it is fixed_effect"),
        ((RandomEffect("per-user", entity="item", features=["row", "tags"]),), {},
         "coordinates.per-user: entity is item, in initial_model it is user"),
        ((FixedEffect("global", features="row", intercept=False),), {},
         "coordinates.global: features is [row], in initial_model it is [row, tags]\n"
         "coordinates.global: intercept is false, in initial_model it is true"),
        ((GLOBAL, FixedEffect("per-usr", locked=True)), {},
         "coordinates.per-usr: is locked, but initial_model has no 'per-usr' "
         "(did you mean 'per-user'?); it has: global, per-user, per-item"),
        ((FixedEffect("other"),), {},
         "initial_model: has none of this run's coordinates; it has: global, per-user, per-item"),
    ],
)  # fmt: skip
def test_models_that_do_not_fit(
    train_rows: pa.Table,
    earlier: MixedModel,
    tmp_path: Path,
    coordinates: Any,
    parameters: Any,
    message: str,
) -> None:
    with pytest.raises(ConfigError) as caught:
        make(*coordinates, initial_model=tmp_path / "model", **parameters).fit(train_rows)
    assert str(caught.value) == message


def test_what_is_no_model(train_rows: pa.Table, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere: is not a model: no such folder"):
        make(initial_model=tmp_path / "nowhere").fit(train_rows)


def test_entities_of_another_type(
    train_rows: pa.Table, earlier: MixedModel, tmp_path: Path
) -> None:
    text = train_rows["user"].cast(pa.string())
    rows = train_rows.drop_columns(["user"]).append_column("user", text)
    for part in (PER_USER, locked(PER_USER)):
        with pytest.raises(DataError, match="entity column 'user' is large_string in these rows"):
            make(GLOBAL, part, initial_model=tmp_path / "model").fit(rows)


@pytest.mark.parametrize(
    ("coordinates", "parameters", "message"),
    [
        ((GLOBAL, locked(PER_ITEM)), {},
         "coordinates.per-item: locked needs initial_model: the model to keep it from"),
        ((locked(GLOBAL), locked(PER_ITEM)), {"initial_model": "m"},
         "coordinates: nothing to fit: all are locked or external_scores"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(coordinates: Any, parameters: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(*coordinates, **parameters)
    assert str(caught.value) == message


def test_a_model_written_by_hand_starts_a_run(train_rows: pa.Table, tmp_path: Path) -> None:
    # Features in another order: they are matched by name, and columns ascend again.
    make(GLOBAL, PER_USER).fit(train_rows).save(tmp_path / "model")
    model = read_model(tmp_path / "model")
    bag = model.indices["row"]
    order = np.arange(len(bag))[::-1]
    turned = type(bag)(bag.names.take(pa.array(order)), bag.terms.take(pa.array(order)))
    moved = {}
    for name, part in model.coordinates.items():
        first = {"global": 1, "per-user": 1 + len(model.indices["tags"])}[name]
        width = 1 + sum(len(index) for index in model.indices.values())
        numbers = np.arange(width)
        numbers[first : first + len(bag)] = first + order
        coefficients = part.coefficients
        if name == "global":
            values = np.empty(width)
            values[numbers] = coefficients.values
            coefficients = replace(coefficients, values=values)
        else:
            coefficients = coefficients.renumbered(numbers)
            starts = coefficients.indptr[:-1]
            assert all((np.diff(own.astype(int)) > 0).all()
                       for own in np.split(coefficients.columns, starts[1:]))  # fmt: skip
        moved[name] = replace(part, coefficients=coefficients)
    shutil.rmtree(tmp_path / "model")
    turned_model = replace(model, indices={**model.indices, "row": turned}, coordinates=moved)
    write_model(turned_model, tmp_path / "model")
    workspace = prepare(train_rows, GLOBAL, PER_USER, initial_model=tmp_path / "model")
    for name, start in workspace.start.items():
        expected = model.coordinates[name].coefficients.values
        np.testing.assert_array_equal(start.coefficients.values, expected)
