from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from gdmix import ConfigError, DataError, MixedModel, ModelError, OutputError, RunConfig
from gdmix.runs import read_history, run

NAMES = ("global", "per-user", "per-item")


def configured(**overrides: str) -> RunConfig:
    return RunConfig.from_yaml(
        Path("run.yaml"), {k.replace("__", "."): v for k, v in overrides.items()}
    )


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_run_folder(project: Path) -> None:
    history = run(configured())
    assert [p.name for p in (project / "runs").iterdir()] == ["one"]
    assert set(snapshot(project / "runs" / "one")) == {
        "run.yaml",
        "history.json",
        "run.log",
        "manifest.json",
        "feature_index/row.parquet",
        "feature_index/more.parquet",
        *(f"{name}/models/part-00000.parquet" for name in NAMES),
        *(f"{name}/metric/evalSummary.json" for name in NAMES),
        *(f"{name}/train_scores/part-00000.parquet" for name in NAMES),
        *(f"{name}/validation_scores/part-00000.parquet" for name in NAMES),
    }
    assert history.metrics_of == "validation"
    assert history.selected == 5
    assert history.converged is None
    assert read_history(Path("runs/one")) == history
    log = Path("runs/one/run.log").read_text()
    assert "pass 2, per-item: 12 models, objective " in log


def test_the_run_folder_is_as_readable_as_any_other(project: Path) -> None:
    (project / "other").mkdir()
    run(configured())
    assert (project / "runs/one").stat().st_mode == (project / "other").stat().st_mode


def test_without_validation_rows(project: Path) -> None:
    history = run(configured(data="{train: train.parquet}"))
    assert history.metrics_of == "train"
    assert not (project / "runs/one/global/validation_scores").exists()
    assert (project / "runs/one/global/train_scores").exists()


def test_early_stopping_ends_where_passes_no_longer_help(project: Path) -> None:
    history = run(configured(passes="40", early_stopping="2", select="best", metrics="[logloss]"))
    ends = [s["metrics"]["logloss"] for s in history.steps[2::3]]
    assert 3 <= len(ends) < 40
    assert min(ends[-2:]) >= min(ends[:-2])
    assert all(min(ends[k + 1 : k + 3]) < min(ends[: k + 1]) for k in range(len(ends) - 3))


def test_early_stopping_needs_validation_rows(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"early_stopping needs data\.validation"):
        configured(data="{train: train.parquet}", early_stopping="2")


def test_models_of_all_passes(project: Path) -> None:
    run(configured(passes="3", output_models="all"))
    run(configured(passes="2", output="runs/two"))
    folders = sorted(p.name for p in Path("runs/one/passes").iterdir())
    assert folders == ["1", "2", "3"]
    for name in NAMES:
        of_two = MixedModel.load("runs/two").coefficients(name)
        assert MixedModel.load("runs/one/passes/2").coefficients(name).equals(of_two)
        of_three = MixedModel.load("runs/one").coefficients(name)
        assert MixedModel.load("runs/one/passes/3").coefficients(name).equals(of_three)


def test_no_models(project: Path) -> None:
    history = run(configured(output_models="none"))
    assert read_history(Path("runs/one")) == history
    assert not (Path("runs/one") / "manifest.json").exists()
    assert (Path("runs/one/global/train_scores")).exists()
    run(configured(output_models="none"), overwrite=True)
    with pytest.raises(ModelError, match="is not a model"):
        MixedModel.load("runs/one")


def test_estimated_weights_are_in_the_history(project: Path) -> None:
    auto = {f"coordinates__{name}__l2": "auto" for name in NAMES}
    history = run(configured(**auto))
    assert read_history(Path("runs/one")) == history
    groups = [(c["coordinate"], c["group"]) for c in history.variance_components]
    assert ("per-user", "(INTERCEPT)") in groups
    assert ("global", "(INTERCEPT)") not in groups
    assert history.log_marginal_likelihood is not None
    for component in history.variance_components:
        assert component["l2"] * component["variance"] == pytest.approx(1.0)
        assert 0 < component["effective"] < component["coefficients"]


def test_a_run_can_be_repeated_from_its_folder(project: Path) -> None:
    first = run(configured(**{"coordinates__per-user__l2": "7", "tolerance": "1e-3"}))
    again = RunConfig.from_yaml(Path("runs/one/run.yaml"), {"output": "runs/two"})
    assert again.coordinates["per-user"].l2 == 7
    second = run(again)
    assert [s["objective"] for s in second.steps] == [s["objective"] for s in first.steps]


def test_scores_add_up_to_what_the_model_predicts(
    project: Path, train_rows: pa.Table, validation_rows: pa.Table
) -> None:
    run(configured())
    model = MixedModel.load("runs/one")
    for split, rows in (("train_scores", train_rows), ("validation_scores", validation_rows)):
        components = model.predict(rows, kind="components")
        link = model.predict(rows, kind="link")
        for name in NAMES:
            table = pq.read_table(project / "runs/one" / name / split)
            assert table.column_names == [
                "uid", "user", "item", "response", "weight", "offset", "score", "total_score",
            ]  # fmt: skip
            assert table["uid"].equals(rows["uid"])
            np.testing.assert_allclose(table["score"], components[name], atol=1e-12)
            np.testing.assert_allclose(table["total_score"], link, atol=1e-12)


def test_everything_in_the_folder_is_of_the_model_that_was_kept(
    project: Path, validation_rows: pa.Table
) -> None:
    loose = "{type: random_effect, entity: user, features: [row, more], l2: 0.001}"
    settings = {"select": "best", "metrics": "logloss", "passes": "4"}
    history = run(configured(**settings, **{"coordinates__per-user": loose}))
    assert 2 <= history.selected < len(history.steps) - 1
    kept = history.steps[: history.selected + 1]
    for name in NAMES:
        summary = json.loads(Path(f"runs/one/{name}/metric/evalSummary.json").read_text())
        assert summary == [s["metrics"] for s in kept if s["coordinate"] == name][-1]
    table = pq.read_table("runs/one/global/validation_scores")
    link, response = table["total_score"].to_numpy(), table["response"].to_numpy()
    loss = np.mean(np.logaddexp(0.0, link) - response * link)
    assert loss == pytest.approx(history.steps[history.selected]["metrics"]["logloss"], abs=1e-12)
    predicted = MixedModel.load("runs/one").predict(validation_rows, kind="link")
    np.testing.assert_allclose(predicted, link, atol=1e-12)


def test_callbacks(project: Path) -> None:
    seen: list[Any] = []
    run(configured(), on_start=lambda *at: seen.append(at), on_step=lambda s: seen.append(s))
    assert seen[0] == (1, "global")
    assert len(seen) == 12


# What exists stays, what fails leaves nothing


def fail(*_: Any, **__: Any) -> Any:
    raise DataError("in mid-training")


def interrupt(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize("end", [fail, interrupt])
def test_a_run_that_ends_before_its_first_step_leaves_nothing(
    project: Path, monkeypatch: Any, end: Any
) -> None:
    monkeypatch.setattr("gdmix.estimator.descend", end)
    with pytest.raises((DataError, KeyboardInterrupt)):
        run(configured())
    assert list((project / "runs").iterdir()) == []


@pytest.mark.parametrize("end", [fail, interrupt])
@pytest.mark.parametrize("where", ["gdmix.estimator.descend", "gdmix.engines.local.write_model"])
def test_an_earlier_run_stays_when_the_next_one_fails(
    project: Path, monkeypatch: Any, end: Any, where: str
) -> None:
    run(configured())
    before = snapshot(project / "runs" / "one")
    monkeypatch.setattr(where, end)
    with pytest.raises((DataError, KeyboardInterrupt)):
        run(configured(), overwrite=True)
    assert snapshot(project / "runs" / "one") == before
    left = {p.name for p in (project / "runs").iterdir()} - {".one.unfinished"}
    assert left == {"one"}


def test_results_are_replaced_only_if_told_so(project: Path) -> None:
    run(configured())
    before = snapshot(project / "runs")
    with pytest.raises(OutputError) as caught:
        run(configured(passes="1"))
    assert str(caught.value) == (
        "runs/one: holds earlier results; pass --overwrite to replace them"
    )
    assert snapshot(project / "runs") == before
    run(configured(passes="1"), overwrite=True)
    assert len(read_history(Path("runs/one")).steps) == 3
    assert [p.name for p in (project / "runs").iterdir()] == ["one"]


def test_a_folder_of_others_is_never_replaced(project: Path) -> None:
    (project / "runs/one").mkdir(parents=True)
    (project / "runs/one/thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="runs/one: holds files that gdmix did not write"):
            run(configured(), overwrite=overwrite)
    assert snapshot(project / "runs") == {"one/thesis.txt": b"mine"}


def test_an_empty_folder_is_taken(project: Path) -> None:
    (project / "runs/one").mkdir(parents=True)
    run(configured())
    assert (project / "runs/one/manifest.json").exists()


def test_the_output_is_checked_before_rows_are_read(project: Path) -> None:
    (project / "runs").write_text("a file")
    with pytest.raises(OutputError, match="^runs/one: can't be written: "):
        run(configured(data="{train: missing.parquet}"))


def test_a_folder_that_may_not_be_written(project: Path, monkeypatch: Any) -> None:
    (project / "runs").mkdir(mode=0o500)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(OutputError, match="permission denied in runs"):
        run(configured())


def test_logging_is_as_before_afterwards(project: Path) -> None:
    logger = logging.getLogger("gdmix")
    level, handlers = logger.level, list(logger.handlers)
    run(configured())
    assert (logger.level, logger.handlers) == (level, handlers)


# Histories


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "nowhere: is not a run folder: has no history.json"),
        ("{", "nowhere/history.json: can't be read: "),
        ("[]", "nowhere/history.json: can't be read: "),
        ('{"steps": []}', "nowhere/history.json: can't be read: "),
    ],
)
def test_a_history_that_is_none(
    tmp_path: Path, monkeypatch: Any, content: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("nowhere").mkdir()
        Path("nowhere/history.json").write_text(content)
    with pytest.raises(ModelError) as caught:
        read_history(Path("nowhere"))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_an_undefined_metric_is_null(project: Path, validation_rows: pa.Table) -> None:
    positive = validation_rows.filter(pc.equal(validation_rows["response"], 1))
    pq.write_table(positive, "validation.parquet")
    run(configured(metrics="[logloss, auc]"))
    steps = read_history(Path("runs/one")).steps
    assert all(s["metrics"]["auc"] is None for s in steps)
    assert all(s["metrics"]["logloss"] > 0 for s in steps)
