"""A run whose arrays lie in scratch files is the run whose arrays lie in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gdmix import ConfigError, DataError, FixedEffect, MixedModel, OutputError, RandomEffect, memory
from gdmix.config import RunConfig
from gdmix.data import entity_blocks
from gdmix.engines.local import LocalEngine
from gdmix.model.store import read_model
from gdmix.runs import read_history, run

UNFINISHED = Path("runs/.one.unfinished")


def configured(**overrides: str) -> RunConfig:
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return RunConfig.from_yaml(Path("run.yaml"), dotted)


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put every array into a file, and part rows into as many parts as there can be."""
    monkeypatch.setattr(memory, "_SMALLEST_MAPPED", 1)
    monkeypatch.setattr(memory, "_HELD_SHARE", 0.0)
    monkeypatch.setattr(entity_blocks, "_PART_SHARE", 1e-12)


def coefficients(folder: Path) -> dict[str, np.ndarray]:
    model = read_model(folder)
    return {name: own.coefficients.values for name, own in model.coordinates.items()}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"solver": "joint", "threads": "1"},
        {"validate": "drop", "columns__weight": "level"},
        {"coordinates__per-user__max_active_rows": "20", "solver": "joint"},
        {"data__validation": "null", "metrics": "[auc:user, logloss]"},
    ],
)
def test_the_model_is_the_same(
    project: Path, settings: dict[str, str], request: pytest.FixtureRequest
) -> None:
    whole = run(configured(output="runs/whole", **settings))
    request.getfixturevalue("no_memory")
    history = run(configured(**settings))
    for name, values in coefficients(Path("runs/whole")).items():
        np.testing.assert_allclose(coefficients(Path("runs/one"))[name], values, atol=1e-12)
    for step, wanted in zip(history.steps, whole.steps, strict=True):
        assert step["objective"] == pytest.approx(wanted["objective"], rel=1e-12)
        assert step["metrics"] == pytest.approx(wanted["metrics"], rel=1e-12)
    files = {str(p.relative_to("runs/one")) for p in Path("runs/one").rglob("*")}
    assert files == {str(p.relative_to("runs/whole")) for p in Path("runs/whole").rglob("*")}
    assert not UNFINISHED.exists()


def test_the_estimator(train_rows: pa.Table, tmp_path: Path, no_memory: None) -> None:
    model = MixedModel(
        [FixedEffect("global", features="all"), RandomEffect("own", entity="user")],
        features={"all": ["x", "kind", "tags"]},
        memory_limit="2 GiB",
        scratch=tmp_path / "scratch",
    )
    model.fit(train_rows)
    assert list((tmp_path / "scratch").iterdir()) == []  # made, used, and emptied
    there = model.predict(train_rows)
    assert there.shape == (train_rows.num_rows,)
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(MixedModel.load(tmp_path / "model").predict(train_rows), there)


def stop(*_: Any) -> None:
    raise KeyboardInterrupt


def test_prepared_rows_are_used_again(
    project: Path, no_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(configured(output="runs/whole"))
    for settings in ({}, {"scratch": "elsewhere"}):
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            run(configured(**settings), overwrite=True, on_start=stop)  # nothing is fitted yet
        with monkeypatch.context() as patched:
            patched.setattr(LocalEngine, "_read", None)  # it would have to read again
            run(configured(**settings), resume=True, overwrite=True)
        for name, values in coefficients(Path("runs/whole")).items():
            np.testing.assert_array_equal(coefficients(Path("runs/one"))[name], values)
        assert not UNFINISHED.exists()
    assert list(Path("elsewhere").iterdir()) == []


def test_other_rows_are_not_taken_for_these(project: Path, no_memory: None) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(configured(scratch="elsewhere"), on_start=stop)
    with pytest.raises(ConfigError, match="another 'passes'"):
        run(configured(scratch="elsewhere", passes="3"), resume=True)
    run(configured(scratch="elsewhere", data__train="validation.parquet"))
    assert read_history(Path("runs/one")).steps[0]["models"] == 1
    log = Path("runs/one/run.log").read_text()
    assert "validation.parquet: 300 rows" in log


def test_failure_leaves_no_scratch(
    project: Path, no_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for scratch in ("null", "elsewhere"):
        with monkeypatch.context() as patched:
            patched.setattr("gdmix.engines.local.write_scores", broken)
            with pytest.raises(OutputError, match="No space left on device"):
                run(configured(scratch=scratch))
        assert (UNFINISHED / "checkpoint").exists()
        assert not (UNFINISHED / "scratch").exists()
        assert not list(Path("elsewhere").glob("*"))
        run(configured(scratch=scratch), resume=True)
        run(configured(scratch=scratch), overwrite=True)
        Path("runs/one/manifest.json").unlink()
        Path("runs/one").rename(f"runs/{scratch}")
    with pytest.raises(DataError):
        run(configured(columns__response="kind"))
    assert not UNFINISHED.exists()


@pytest.mark.parametrize("limit", ["much", "-1", "3 MB", "1e9", "4 GX", "0"])
def test_what_is_no_limit(limit: str) -> None:
    with pytest.raises(ConfigError, match=r"memory_limit: .* is no limit; give a number of bytes"):
        MixedModel([FixedEffect("global")], memory_limit=limit)


@pytest.mark.parametrize(
    ("limit", "size"),
    [("4GB", 4 * 10**9), ("1.5 GiB", 3 * 2**29), ("2tb", 2 * 10**12), (10**9, 10**9)],
)
def test_limits(limit: str | int, size: int) -> None:
    assert MixedModel([FixedEffect("global")], memory_limit=limit)._config().memory_limit == size


def test_joint_solver_needs_memory(train_rows: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gdmix.engines.local._JOINT_VECTORS", 10**7)
    model = MixedModel([RandomEffect("own", entity="user")], solver="joint", memory_limit="1GB")
    with pytest.raises(ConfigError, match="solver 'joint' would take 2 GB for 25 coefficients"):
        model.fit(train_rows)
