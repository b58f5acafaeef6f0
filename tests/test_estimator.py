from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils.validation import check_is_fitted

from gdmix import (
    ConfigError,
    DataError,
    FixedEffect,
    MixedModel,
    ModelError,
    OutputError,
    RandomEffect,
)

FEATURES = {"row": ["x", "kind"], "more": ["tags"]}
GLOBAL = FixedEffect("global", features=["row", "more"])
PER_USER = RandomEffect("per-user", entity="user", features=["row"], l2=2.0)
PER_ITEM = RandomEffect("per-item", entity="item")


def make(*coordinates: Any, **parameters: Any) -> MixedModel:
    chosen = coordinates or (GLOBAL, PER_USER, PER_ITEM)
    return MixedModel(list(chosen), **{"features": FEATURES, "passes": 2, **parameters})


@pytest.fixture(scope="module")
def fitted(train_rows: pa.Table, validation_rows: pa.Table) -> MixedModel:
    return make().fit(train_rows, validation=validation_rows)


# Predictions


def test_kinds_of_prediction_fit_together(fitted: MixedModel, validation_rows: pa.Table) -> None:
    offset = np.linspace(-1.0, 1.0, validation_rows.num_rows)
    rows = validation_rows.append_column("offset", pa.array(offset))
    components = fitted.predict(rows, kind="components")
    assert list(components) == ["global", "per-user", "per-item"]
    link = fitted.predict(rows, kind="link")
    np.testing.assert_allclose(link, offset + sum(components.values()), atol=1e-12)
    probability = fitted.predict(rows)
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-link)), atol=1e-12)
    both = fitted.predict_proba(rows)
    np.testing.assert_array_equal(both[:, 1], probability)
    np.testing.assert_allclose(both.sum(axis=1), 1.0)
    assert fitted.classes_.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("task", "response"), [("linear_regression", "level"), ("poisson_regression", "count")]
)
def test_other_tasks(train_rows: pa.Table, task: Any, response: str) -> None:
    model = make(task=task, columns={"response": response}).fit(train_rows)
    link, mean = model.predict(train_rows, kind="link"), model.predict(train_rows)
    expected = link if task == "linear_regression" else np.exp(link)
    np.testing.assert_allclose(mean, expected, rtol=1e-12)
    observed = train_rows[response].to_numpy()
    assert np.mean((mean - observed) ** 2) < 0.7 * np.var(observed)
    with pytest.raises(ConfigError, match=f"predict_proba is for logistic_regression, not {task}"):
        model.predict_proba(train_rows)


def as_pandas(table: pa.Table, _: Path) -> Any:
    return table.to_pandas()


def as_polars(table: pa.Table, _: Path) -> Any:
    return pl.from_arrow(table)


def as_dict(table: pa.Table, _: Path) -> Any:
    return {name: table[name] for name in table.column_names}


def as_path(table: pa.Table, folder: Path) -> Any:
    pq.write_table(table, folder / "rows.parquet")
    return folder / "rows.parquet"


def as_paths(table: pa.Table, folder: Path) -> Any:
    pq.write_table(table.slice(0, 100), folder / "one.parquet")
    pq.write_table(table.slice(100), folder / "two.parquet")
    return [folder / "one.parquet", folder / "two.parquet"]


@pytest.mark.parametrize("convert", [as_pandas, as_polars, as_dict, as_path, as_paths])
def test_the_form_of_the_rows_does_not_matter(
    fitted: MixedModel,
    train_rows: pa.Table,
    validation_rows: pa.Table,
    tmp_path: Path,
    convert: Any,
) -> None:
    expected = fitted.predict(validation_rows)
    rows = convert(validation_rows, tmp_path)
    np.testing.assert_array_equal(fitted.predict(rows), expected)
    again = make().fit(convert(train_rows, tmp_path))
    np.testing.assert_allclose(again.predict(validation_rows), expected, atol=1e-9)


def test_the_response_is_not_needed_to_predict(
    fitted: MixedModel, validation_rows: pa.Table
) -> None:
    expected = fitted.predict(validation_rows)
    without = validation_rows.drop_columns(["response", "count", "level", "uid"])
    np.testing.assert_array_equal(fitted.predict(without), expected)


def test_unseen_entities_add_nothing(fitted: MixedModel, validation_rows: pa.Table) -> None:
    n = validation_rows.num_rows
    strangers = validation_rows.drop_columns(["user", "item"])
    strangers = strangers.append_column("user", pa.array(np.full(n, -1)))
    strangers = strangers.append_column("item", pa.array(["?"] * n))
    link = fitted.predict(strangers, kind="link")
    components = fitted.predict(strangers, kind="components")
    np.testing.assert_array_equal(link, components["global"])
    assert not components["per-user"].any()
    assert not components["per-item"].any()


def test_no_rows_no_predictions(fitted: MixedModel, validation_rows: pa.Table) -> None:
    assert fitted.predict(validation_rows.slice(0, 0)).shape == (0,)


@pytest.mark.parametrize("mode", ["strict", "drop"])
def test_there_is_a_prediction_per_row_or_an_error(
    fitted: MixedModel, validation_rows: pa.Table, mode: str
) -> None:
    x = validation_rows["x"].to_numpy().copy()
    x[3] = np.nan
    rows = validation_rows.drop_columns(["x"]).append_column("x", pa.array(x))
    model = pickle.loads(pickle.dumps(fitted)).set_params(validate=mode)
    with pytest.raises(DataError, match=r"column 'x': 1 row .*\(first: uid 2003\)"):
        model.predict(rows)
    assert model.set_params(validate="off").predict(rows).shape == (rows.num_rows,)


def test_dropped_rows_are_not_trained_on(train_rows: pa.Table) -> None:
    x = train_rows["x"].to_numpy().copy()
    x[3] = np.nan
    rows = train_rows.drop_columns(["x"]).append_column("x", pa.array(x))
    model = make(validate="drop").fit(rows)
    rest = train_rows.take(np.delete(np.arange(train_rows.num_rows), 3))
    expected = make().fit(rest).predict(rest)
    np.testing.assert_allclose(model.predict(rest), expected, atol=1e-9)


# Shapes of models


def test_zero_fixed_effects(train_rows: pa.Table) -> None:
    model = make(PER_USER, PER_ITEM).fit(train_rows)
    assert list(model.predict(train_rows, kind="components")) == ["per-user", "per-item"]


def test_only_fixed_effects_one_of_them_an_intercept(train_rows: pa.Table) -> None:
    level = FixedEffect("level")
    slopes = FixedEffect("slopes", features="row", intercept=False)
    tags = FixedEffect("tags", features="more", intercept=False)
    model = make(level, slopes, tags, passes=60).fit(train_rows)
    whole = make(GLOBAL, passes=1).fit(train_rows)
    difference = model.predict(train_rows) - whole.predict(train_rows)
    assert np.abs(difference).max() < 1e-4
    assert model.coefficients("slopes")["name"].to_pylist() == ["x", "kind", "kind", "kind"]
    assert model.coefficients("level")["name"].to_pylist() == ["(INTERCEPT)"]


def test_an_intercept_alone_is_the_mean(train_rows: pa.Table) -> None:
    model = make(FixedEffect("level"), features=None, passes=1).fit(train_rows)
    mean = train_rows["response"].to_numpy().mean()
    np.testing.assert_allclose(model.predict(train_rows), mean, atol=1e-6)


def test_the_order_of_coordinates_is_free(train_rows: pa.Table) -> None:
    one = make(GLOBAL, PER_USER, PER_ITEM, passes=200, tolerance=1e-12).fit(train_rows)
    two = make(PER_ITEM, GLOBAL, PER_USER, passes=200, tolerance=1e-12).fit(train_rows)
    assert one.converged_ and two.converged_
    assert list(two.predict(train_rows, kind="components")) == ["per-item", "global", "per-user"]
    np.testing.assert_allclose(one.predict(train_rows), two.predict(train_rows), atol=1e-4)


# Training


def test_history_and_metrics(fitted: MixedModel) -> None:
    assert [s.coordinate for s in fitted.history_] == ["global", "per-user", "per-item"] * 2
    assert [s.pass_number for s in fitted.history_] == [1, 1, 1, 2, 2, 2]
    assert set(fitted.history_[0].metrics) == {"auc", "logloss"}
    objectives = [s.objective for s in fitted.history_]
    assert objectives == sorted(objectives, reverse=True)
    assert fitted.converged_ is None


def test_metrics_are_of_the_validation_rows_if_there_are_any(
    fitted: MixedModel, validation_rows: pa.Table
) -> None:
    probability = fitted.predict(validation_rows)
    response = validation_rows["response"].to_numpy()
    loss = -np.mean(np.log(np.where(response == 1, probability, 1 - probability)))
    assert fitted.history_[-1].metrics["logloss"] == pytest.approx(loss, abs=1e-12)


def test_the_best_model_is_kept(train_rows: pa.Table, validation_rows: pa.Table) -> None:
    # Far too little regularisation: later passes are worse on other rows.
    loose = RandomEffect("per-user", entity="user", features=["row", "more"], l2=1e-3)
    model = make(GLOBAL, loose, passes=4, select="best", metrics=["logloss"])
    model.fit(train_rows, validation=validation_rows)
    history = [s.metrics["logloss"] for s in model.history_]
    link = model.predict(validation_rows, kind="link")
    response = validation_rows["response"].to_numpy()
    kept = np.mean(np.logaddexp(0.0, link) - response * link)
    assert kept == pytest.approx(min(history[1:]), abs=1e-12)
    assert kept < history[-1]


def test_labels_beside_the_rows(train_rows: pa.Table, fitted: MixedModel) -> None:
    labels = train_rows["response"].to_numpy()
    rows = train_rows.drop_columns(["response"])
    expected = fitted.predict(train_rows)
    for given in (labels, list(labels), pd.Series(labels), labels == 1):
        np.testing.assert_allclose(make().fit(rows, given).predict(rows), expected, atol=1e-12)
    # They replace a column of that name.
    wrong = train_rows.set_column(
        train_rows.schema.get_field_index("response"), "response", pa.array(1 - labels)
    )
    np.testing.assert_allclose(make().fit(wrong, labels).predict(rows), expected, atol=1e-12)


def test_labels_of_another_length(train_rows: pa.Table) -> None:
    with pytest.raises(DataError, match=r"^y has shape \(3,\), X has 600 rows$"):
        make().fit(train_rows, [0, 1, 0])


def test_weights_count(train_rows: pa.Table) -> None:
    weight = np.arange(train_rows.num_rows) % 3
    weighted = make().fit(train_rows.append_column("weight", pa.array(weight)))
    repeated = train_rows.take(np.repeat(np.arange(train_rows.num_rows), weight))
    copies = make().fit(repeated.drop_columns(["uid"]))
    np.testing.assert_allclose(weighted.predict(train_rows), copies.predict(train_rows), atol=1e-9)


# Parameters


def test_parameters_go_in_and_out() -> None:
    model = make(tolerance=1e-3, metrics=["auc:user"], threads=2)
    parameters = model.get_params()
    assert parameters["tolerance"] == 1e-3
    assert parameters["coordinates"] == [GLOBAL, PER_USER, PER_ITEM]
    assert MixedModel(**parameters).get_params() == parameters
    assert model.set_params(passes=7, task="poisson_regression") is model
    assert (model.passes, model.task) == (7, "poisson_regression")
    with pytest.raises(ConfigError, match=r"has no parameter 'pases' \(did you mean 'passes'\?\)"):
        model.set_params(passes=3, pases=8)
    assert model.passes == 7


def test_clone_has_the_parameters_and_no_model(fitted: MixedModel) -> None:
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    assert not hasattr(copy, "model_")
    with pytest.raises(NotFittedError):
        check_is_fitted(copy)
    check_is_fitted(fitted)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"coordinates": []}, "coordinates: is empty"),
        ({"coordinates": [GLOBAL, GLOBAL]}, "two coordinates are named 'global'"),
        ({"task": "ranking"}, "^task: "),
        ({"passes": 0}, "passes: "),
        ({"features": {"row": ["x"]}}, "no feature bag 'more'"),
        ({"columns": {"label": "y"}}, "columns.label: unknown key"),
        ({"metrics": ["auk"]}, r"unknown metric 'auk' \(did you mean 'auc'\?\)"),
        ({"validate": "lax"}, "validate: "),
    ],
)
def test_mistakes_are_found_when_they_are_made(parameters: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**parameters) if "coordinates" not in parameters else MixedModel(**parameters)


def test_mistakes_made_later_are_found_by_fit(train_rows: pa.Table) -> None:
    with pytest.raises(ConfigError, match="passes: "):
        make().set_params(passes=0).fit(train_rows)


def test_best_needs_validation_rows(train_rows: pa.Table) -> None:
    with pytest.raises(ConfigError, match="select='best' needs validation rows"):
        make(select="best").fit(train_rows)


def test_a_metric_that_does_not_fit_the_labels_is_found_before_training(
    train_rows: pa.Table, monkeypatch: Any
) -> None:
    monkeypatch.setattr("gdmix.estimator.descend", None)  # training would fail
    model = make(task="linear_regression", columns={"response": "level"}, metrics=["auc"])
    with pytest.raises(DataError, match="metric 'auc' needs a response of 0 and 1 only"):
        model.fit(train_rows)


def test_what_an_unfitted_model_says() -> None:
    model = make()
    for use in (
        lambda: model.predict({"x": [1.0]}),
        lambda: model.predict_proba({"x": [1.0]}),
        lambda: model.coefficients("global"),
        lambda: model.save("nowhere"),
    ):
        with pytest.raises(ModelError, match="not fitted yet; call fit or load first"):
            use()


def test_what_it_is_called(fitted: MixedModel) -> None:
    text = "MixedModel(logistic_regression: global, per-user, per-item; "
    assert repr(make()) == text + "not fitted)"
    assert repr(fitted) == text + "fitted)"


def test_unknown_kind(fitted: MixedModel, validation_rows: pa.Table) -> None:
    with pytest.raises(ConfigError, match="kind 'proba' is none of response, link, components"):
        fitted.predict(validation_rows, kind="proba")


def test_rows_that_do_not_fit(fitted: MixedModel, validation_rows: pa.Table) -> None:
    with pytest.raises(DataError, match="column 'user' is missing"):
        fitted.predict(validation_rows.drop_columns(["user"]))
    text = validation_rows.to_pandas().astype({"user": str})
    with pytest.raises(DataError, match="entity column 'user' is large_string in these rows"):
        fitted.predict(text)
    with pytest.raises(DataError, match="entity column 'user' is large_string in these rows"):
        make().fit(validation_rows, validation=text)


# Coefficients, saving


def test_coefficients(fitted: MixedModel) -> None:
    table = fitted.coefficients("per-user", entity=3)
    assert table.column_names == ["name", "term", "value"]
    assert table["name"][0].as_py() == "(INTERCEPT)"
    assert fitted.coefficients("per-item").column_names == ["entity", "name", "term", "value"]
    assert fitted.coefficients("per-item", entity="item-3").num_rows == 1
    with pytest.raises(ModelError, match="has no model of entity 'item-99'"):
        fitted.coefficients("per-item", entity="item-99")


def test_a_loaded_model_predicts_the_same(
    fitted: MixedModel, validation_rows: pa.Table, tmp_path: Path
) -> None:
    fitted.save(tmp_path / "model")
    loaded = MixedModel.load(tmp_path / "model")
    assert repr(loaded) == repr(fitted)
    for kind in ("response", "link"):
        np.testing.assert_array_equal(
            loaded.predict(validation_rows, kind=kind),
            fitted.predict(validation_rows, kind=kind),
        )
    for name in ("global", "per-user", "per-item"):
        assert loaded.coefficients(name).equals(fitted.coefficients(name))
    loaded.save(tmp_path / "again")
    again = MixedModel.load(tmp_path / "again")
    np.testing.assert_array_equal(again.predict(validation_rows), fitted.predict(validation_rows))


def test_a_loaded_model_has_its_own_columns_but_no_settings(
    train_rows: pa.Table, tmp_path: Path
) -> None:
    columns = {"response": "level", "offset": "x"}
    make(task="linear_regression", columns=columns).fit(train_rows).save(tmp_path / "model")
    loaded = MixedModel.load(str(tmp_path / "model"))
    assert loaded.get_params()["columns"] == columns
    assert loaded.task == "linear_regression"
    link = loaded.predict(train_rows, kind="link") - train_rows["x"].to_numpy()
    parts = loaded.predict(train_rows, kind="components")
    np.testing.assert_allclose(link, sum(parts.values()), atol=1e-12)
    assert loaded.set_params(threads=1).predict(train_rows).shape == (600,)
    with pytest.raises(ConfigError, match="a loaded model can only predict"):
        loaded.fit(train_rows)


def test_saving_replaces_a_model_and_nothing_else(fitted: MixedModel, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    fitted.save(tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds files that gdmix did not write"):
        fitted.save(other)
    assert (other / "notes.txt").read_text() == "mine"


def test_pickle(fitted: MixedModel, validation_rows: pa.Table) -> None:
    copy = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(copy.predict(validation_rows), fitted.predict(validation_rows))


# scikit-learn


@pytest.mark.parametrize("scoring", ["neg_log_loss", "roc_auc"])
def test_cross_validation(train_rows: pa.Table, scoring: str) -> None:
    frame = train_rows.to_pandas()
    scores = cross_val_score(
        make(), frame.drop(columns="response"), frame["response"], scoring=scoring, cv=3,
        error_score="raise",
    )  # fmt: skip
    worst = {"neg_log_loss": -np.log(2), "roc_auc": 0.5}[scoring]
    assert (scores > worst).all()


def test_grid_search(train_rows: pa.Table) -> None:
    frame = train_rows.to_pandas()
    strong, weak = (
        RandomEffect("per-user", entity="user", features="row", l2=l2) for l2 in (1e6, 2.0)
    )
    search = GridSearchCV(
        make(),
        {"coordinates": [[GLOBAL, strong], [GLOBAL, weak]]},
        scoring="neg_log_loss",
        cv=2,
        error_score="raise",
    )
    search.fit(frame.drop(columns="response"), frame["response"])
    assert search.best_params_["coordinates"][1].l2 == 2.0


def test_what_scikit_learn_takes_it_for() -> None:
    assert is_classifier(make())
    assert is_regressor(make(task="poisson_regression", metrics=[]))
