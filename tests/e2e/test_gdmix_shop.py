"""MovieLens-100k as a GDMix shop has it: its folders, its configuration, its figures."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import gdmix
from gdmix import RunConfig
from gdmix.compat.gdmix_yaml import load_run
from gdmix.convert import convert_model
from gdmix.data.movielens import MovieLensFiles
from gdmix.data.movielens_gdmix import write_gdmix_folders
from gdmix.model.mixed_model import TrainedModel
from gdmix.model.store import read_model
from gdmix.runs import run

ROOT = Path(__file__).parents[2]
SOURCE = Path(os.environ.get("GDMIX_MOVIELENS") or ROOT / "movielens")
REAL = {"global": 0.629651, "per-user": 0.703682, "per-movie": 0.754469}

pytestmark = pytest.mark.skipif(
    not (SOURCE / "train.parquet").exists(), reason=f"{SOURCE} holds no prepared MovieLens rows"
)


@pytest.fixture(scope="module")
def parquet_auc(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """AUC of each stage, from the prepared Parquet rows with GDMix's settings."""
    rows = {f"data.{s}": str(SOURCE / f"{s}.parquet") for s in ("train", "validation")}
    output = str(tmp_path_factory.mktemp("parquet") / "run")
    example = Path(gdmix.__file__).parent / "examples" / "movielens_gdmix.yaml"
    history = run(RunConfig.from_yaml(example, {**rows, "output": output}))
    return {s["coordinate"]: s["metrics"]["auc"] for s in history.steps}


@pytest.mark.parametrize("kind", ["tfrecord", "avro"])
def test_figures(kind: Any, parquet_auc: dict[str, float], tmp_path: Path) -> None:
    for split in ("train", "validation"):
        shutil.copy(SOURCE / f"{split}.parquet", tmp_path)
    train, validation = tmp_path / "train.parquet", tmp_path / "validation.parquet"
    sizes = [pq.read_metadata(path).num_rows for path in (train, validation)]
    configuration = write_gdmix_folders(MovieLensFiles(train, validation, *sizes), kind)
    history = run(load_run(configuration, {"output": str(tmp_path / "out")}).config)
    for step in history.steps:
        auc = step["metrics"]["auc"]
        assert auc == pytest.approx(parquet_auc[step["coordinate"]], abs=1e-4)
        assert auc == pytest.approx(REAL[step["coordinate"]], abs=0.002)
    model = read_model(tmp_path / "out")
    assert {name: len(m.coefficients) for name, m in model.linear.items()} == {
        "global": 1,
        "per-user": 943,
        "per-movie": 1648,
    }
    # The Avro models of the run are all that is needed of it.
    (tmp_path / "out" / "manifest.json").unlink()
    description = load_run(configuration).config
    again = convert_model(tmp_path / "out", tmp_path / "native", "parquet", description)
    for name in model.linear:
        assert by_feature(model, name) == by_feature(again, name)


def by_feature(model: TrainedModel, name: str) -> dict[tuple[str, ...], float]:
    """Return coefficients by entity, name and term; Avro has entities as text."""
    rows = (row.values() for row in model.coefficient_table(name).to_pylist())
    return {tuple(map(str, key)): value for *key, value in rows}
