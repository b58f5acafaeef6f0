"""Coordinates whose scores come from files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdmix import (
    ConfigError,
    DataError,
    ExternalScores,
    FixedEffect,
    MixedModel,
    ModelError,
    RandomEffect,
    RunConfig,
    cli,
)
from gdmix.model.store import read_model
from gdmix.runs import read_history, run

FEATURES = {"row": ["x", "kind"]}
GLOBAL = FixedEffect("global", features="row")
PER_USER = RandomEffect("per-user", entity="user", features="row", max_active_rows=10)


def scores_of(rows: pa.Table) -> pa.Table:
    """Return scores in an order of their own."""
    order = np.random.default_rng(5).permutation(rows.num_rows)
    table = pa.table({"uid": rows["uid"], "score": rows["x"].to_numpy() - 0.3})
    return table.take(pa.array(order))


@pytest.fixture
def deep(tmp_path: Path, train_rows: pa.Table, validation_rows: pa.Table) -> ExternalScores:
    for name, rows in (("train", train_rows), ("validation", validation_rows)):
        pq.write_table(scores_of(rows), tmp_path / f"{name}-scores.parquet")
    return ExternalScores(
        "deep",
        train=tmp_path / "train-scores.parquet",
        validation=str(tmp_path / "validation-scores.parquet"),
    )


@pytest.mark.parametrize("solver", ["descent", "joint"])
def test_scores_are_an_offset(
    deep: ExternalScores, train_rows: pa.Table, validation_rows: pa.Table, solver: Any
) -> None:
    settings: dict[str, Any] = {"features": FEATURES, "passes": 2, "solver": solver}
    model = MixedModel([GLOBAL, deep, PER_USER], **settings)
    model.fit(train_rows, validation=validation_rows)
    assert list(model.model_.coordinates) == ["global", "deep", "per-user"]
    assert {s.coordinate for s in model.history_} <= {"global", "per-user", "joint"}
    offset = train_rows["x"].to_numpy() - 0.3
    other = validation_rows.append_column("offset", pa.array(validation_rows["x"].to_numpy() - 0.3))
    plain = MixedModel([GLOBAL, PER_USER], **settings)
    plain.fit(train_rows.append_column("offset", pa.array(offset)), validation=other)
    for step, wanted in zip(model.history_, plain.history_, strict=True):
        assert step.objective == pytest.approx(wanted.objective, rel=1e-9)
        assert step.metrics == pytest.approx(wanted.metrics, rel=1e-9)
    given = {"deep": scores_of(validation_rows)}
    link = model.predict(validation_rows, kind="link", external=given)
    np.testing.assert_allclose(link, plain.predict(other, kind="link"), atol=1e-9)
    positive = model.predict_proba(validation_rows, external=given)[:, 1]
    np.testing.assert_allclose(positive, plain.predict(other), atol=1e-9)


def test_a_model_cannot_score_without_them(
    deep: ExternalScores, train_rows: pa.Table, tmp_path: Path
) -> None:
    model = MixedModel([deep, GLOBAL], features=FEATURES).fit(train_rows)
    with pytest.raises(ModelError, match="'deep' has scores from files: give those of these rows"):
        model.predict(train_rows)
    given = {"deep": deep.train[0], "dep": deep.train[0]}
    with pytest.raises(ModelError, match="no coordinate 'dep' has scores from files"):
        model.predict(train_rows, external=given)
    with pytest.raises(ModelError, match="'deep' has scores from files and no coefficients"):
        model.coefficients("deep")
    model.save(tmp_path / "model")
    loaded = MixedModel.load(tmp_path / "model")
    assert repr(loaded) == "MixedModel(logistic_regression: deep, global; fitted)"
    assert loaded.model_.coordinates["deep"] == model.model_.coordinates["deep"]


def test_scores_of_the_validation_rows_are_needed(
    deep: ExternalScores, train_rows: pa.Table
) -> None:
    alone = deep.model_copy(update={"validation": None})
    model = MixedModel([alone, GLOBAL], features=FEATURES)
    with pytest.raises(ConfigError, match="coordinates.deep: needs `validation`: scores of those"):
        model.fit(train_rows, validation=train_rows)
    model.fit(train_rows)
    with pytest.raises(ConfigError, match="nothing to fit: all are locked or external_scores"):
        MixedModel([deep])


def test_a_row_without_score(deep: ExternalScores, train_rows: pa.Table, tmp_path: Path) -> None:
    pq.write_table(scores_of(train_rows).slice(2), tmp_path / "train-scores.parquet")
    with pytest.raises(DataError, match="training data: 2 rows with no score in .*scores.parquet"):
        MixedModel([deep, GLOBAL], features=FEATURES).fit(train_rows)
    lenient = deep.model_copy(update={"missing": "zero"})
    MixedModel([lenient, GLOBAL], features=FEATURES).fit(train_rows)


def configured(**overrides: str) -> RunConfig:
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    deep = "{type: external_scores, train: train-scores.parquet, validation: v-scores.parquet}"
    return RunConfig.from_yaml(Path("run.yaml"), {"coordinates.deep": deep, **dotted})


@pytest.fixture
def with_scores(project: Path, train_rows: pa.Table, validation_rows: pa.Table) -> Path:
    pq.write_table(scores_of(train_rows), "train-scores.parquet")
    pq.write_table(scores_of(validation_rows), "v-scores.parquet")
    return project


def test_the_run_folder_and_the_commands(with_scores: Path, capsys: Any) -> None:
    run(configured())
    folder = Path("runs/one")
    for split, rows in (("train", "train.parquet"), ("validation", "validation.parquet")):
        own = pq.read_table(folder / "deep" / f"{split}_scores")
        np.testing.assert_allclose(own["score"], pq.read_table(rows)["x"].to_numpy() - 0.3)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["coordinates"]["deep"] == {
        "type": "external_scores", "uid": "uid", "score": None, "missing": "error"
    }  # fmt: skip
    assert {step["coordinate"] for step in read_history(folder).steps} == {
        "global", "per-user", "per-item"
    }  # fmt: skip

    def call(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            cli.app(list(arguments), prog_name="gdmix")
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out + captured.err

    assert call("inspect", "runs/one")[0] == 0
    code, said = call("inspect", "runs/one", "-c", "deep")
    assert (code, said) == (
        2,
        "error: coordinate 'deep' has scores from files and no coefficients\n",
    )
    code, said = call("score", "runs/one", "validation.parquet", "-o", "s.parquet")
    assert (code, "gdmix score --external deep=PATH" in said) == (2, True)
    code, said = call("score", "runs/one", "validation.parquet", "-o", "s.parquet",
                      "--external", "deep=v-scores.parquet")  # fmt: skip
    assert code == 0
    expected = pq.read_table(folder / "deep" / "validation_scores")["total_score"]
    np.testing.assert_allclose(pq.read_table("s.parquet")["total_score"], expected, atol=1e-12)
    code, said = call("score", "runs/one", "validation.parquet", "-o", "s.parquet",
                      "--external", "deep")  # fmt: skip
    assert (code, said) == (2, "error: --external deep: expected NAME=PATH\n")


def test_resumed_runs_know_their_score_files_and_models(
    with_scores: Path, train_rows: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(configured(output="runs/earlier"))
    few = train_rows.filter(pa.array(train_rows["user"].to_numpy() < 15))
    pq.write_table(few, "train.parquet")
    settings = {
        "initial_model": "runs/earlier",
        "coordinates__per-item__locked": "true",
        "coordinates__per-user__max_active_rows": "9",
        "passes": "3",
    }
    monkeypatch.setattr("gdmix.checkpoint._SHARE", 1e9)
    run(configured(output="runs/whole", **settings))

    def stop_after(steps: int) -> Callable[[Any], None]:
        seen = []

        def on_step(step: Any) -> None:
            seen.append(step)
            if len(seen) == steps:
                raise KeyboardInterrupt

        return on_step

    whole = read_model(Path("runs/whole"))
    for steps in (1, 2, 3, 5):
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            run(configured(**settings), overwrite=True, on_step=stop_after(steps))
        run(configured(**settings), overwrite=True, resume=True)
        again = read_model(Path("runs/one"))
        assert list(again.coordinates) == list(whole.coordinates)
        for name, model in whole.linear.items():
            np.testing.assert_allclose(
                again.coordinate(name).coefficients.values, model.coefficients.values, atol=1e-10
            )
    for changed in ("v-scores.parquet", "runs/earlier/manifest.json"):
        with pytest.raises(KeyboardInterrupt):
            run(configured(**settings), overwrite=True, on_step=stop_after(2))
        path = Path(changed)
        path.write_bytes(path.read_bytes())
        with pytest.raises(ConfigError, match="the data have changed"):
            run(configured(**settings), overwrite=True, resume=True)


def test_beyond_memory(
    with_scores: Path, train_rows: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gdmix import memory
    from gdmix.data import entity_blocks

    run(configured(output="runs/earlier"))
    few = train_rows.filter(pa.array(train_rows["user"].to_numpy() < 15))
    pq.write_table(few, "train.parquet")
    settings = {
        "initial_model": "runs/earlier",
        "coordinates__per-item__locked": "true",
        "coordinates__per-user__max_active_rows": "9",
    }
    whole = run(configured(output="runs/whole", **settings))
    monkeypatch.setattr(memory, "_SMALLEST_MAPPED", 1)
    monkeypatch.setattr(memory, "_HELD_SHARE", 0.0)
    monkeypatch.setattr(entity_blocks, "_PART_SHARE", 1e-12)
    parted = run(configured(**settings))
    for step, wanted in zip(parted.steps, whole.steps, strict=True):
        assert step["objective"] == pytest.approx(wanted["objective"], rel=1e-12)
        assert step["metrics"] == pytest.approx(wanted["metrics"], rel=1e-12)
    model, expected = read_model(Path("runs/one")), read_model(Path("runs/whole"))
    for name, part in expected.linear.items():
        np.testing.assert_allclose(
            model.coordinate(name).coefficients.values, part.coefficients.values, atol=1e-12
        )


def test_a_run_needs_scores_of_all_rows(with_scores: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(coordinates__deep__validation="null")
    assert str(caught.value) == (
        "run.yaml: coordinates.deep.validation: is required: scores of data.validation"
    )
