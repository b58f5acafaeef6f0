"""`format: avro`: a run on Spark leaves the folders of a run on one machine, record for record."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from contract_rows import FEATURES, LINEAR, LOGISTIC, RESPONSES, Data, make_rows, tables_differ

from gdmix.compat.gdmix_yaml import load_run
from gdmix.config import RunConfig
from gdmix.data.avro import read_batches, read_schema
from gdmix.errors import ModelError
from gdmix.runs import run
from gdmix.scoring import score_to_file
from test_gdmix_yaml import YAML, write_data

GLOBAL = {"type": "fixed_effect", "features": ["row", "more", "dense"], "l2": 2.0}
PER_USER = {"type": "random_effect", "entity": "user", "features": ["row", "dense"], "l2": 3.0}
PER_ITEM = {"type": "random_effect", "entity": "item", "features": ["more"], "l2": 2.0}
SINGLE = 2.0**-22  # of numbers that were rounded to single precision
pytestmark = pytest.mark.usefixtures("spark")


def configured(data: Data, output: Path, engine: str, **settings: Any) -> RunConfig:
    """Return a run of the contract's rows."""
    task = settings.pop("task", LOGISTIC)
    tree = {
        "task": task,
        "data": {"train": [str(f) for f in data.train], "validation": str(data.validation)},
        "columns": {"response": RESPONSES[task], "weight": "importance", "offset": "base"},
        "features": FEATURES,
        "coordinates": {"global": GLOBAL, "per-user": PER_USER, "per-item": PER_ITEM},
        "format": "avro",
        "avro": {"partitions": {"per-user": 3}},  # no user's hash falls into the first
        "engine": engine,
        "spark": {"partitions": 3},
        "scratch": str(output.parent / "scratch"),
        "output": str(output),
        "threads": 1,
        "passes": 1,
        **settings,
    }
    return RunConfig.model_validate(tree)


def on_both(data: Data, folder: Path, **settings: Any) -> tuple[Path, Path]:
    """Run here and on Spark, and hold the folders of the two against each other."""
    folders = folder / "local", folder / "spark"
    for own in folders:
        run(configured(data, own, own.name, **settings))
    assert_same_folders(*folders)
    return folders


def assert_same_folders(here: Path, there: Path) -> None:
    own, theirs = all_but_scores(here), all_but_scores(there)
    assert theirs == own
    for file in own:
        if file.endswith(".avro"):
            assert_same_models(records(here / file), records(there / file))
        elif file.endswith(".parquet"):
            assert tables_differ(pq.read_table(there / file), pq.read_table(here / file)) < 1e-9
        elif file.endswith("manifest.json"):
            assert_same_trees(*(json.loads((f / file).read_text()) for f in (here, there)))
    assert_same_scores(score_rows(here), score_rows(there))


def assert_same_trees(own: Any, theirs: Any) -> None:
    """Check that manifests are the same but for rounding: they hold a few estimated numbers."""
    assert type(own) is type(theirs)
    if isinstance(own, dict):
        assert list(own) == list(theirs)
        own, theirs = list(own.values()), list(theirs.values())
    if isinstance(own, list):
        assert len(own) == len(theirs)
        for pair in zip(own, theirs, strict=True):
            assert_same_trees(*pair)
    else:
        assert theirs == (pytest.approx(own, abs=1e-9) if isinstance(own, float) else own)


def all_but_scores(folder: Path) -> set[str]:
    files = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    return {f for f in files if "_scores/" not in f}


def records(file: Path) -> pa.Table:
    batches = list(read_batches(file))
    return pa.Table.from_batches(batches, None if batches else read_schema(file))


def assert_same_models(own: pa.Table, theirs: pa.Table) -> None:
    """Same models in the same order; of each the same features in the same order."""
    assert theirs.drop_columns(["means", "variances"]) == own.drop_columns(["means", "variances"])
    for column in ("means", "variances"):
        assert (theirs[column].is_null()) == (own[column].is_null())
        a, b = (t[column].combine_chunks() for t in (own, theirs))
        assert a.value_lengths() == b.value_lengths()
        names, values = zip(*(flattened(x) for x in (a, b)), strict=True)
        assert names[0] == names[1]
        np.testing.assert_allclose(values[1], values[0], rtol=0, atol=1e-9)


def flattened(lists: pa.Array) -> tuple[list[Any], np.ndarray]:
    items = lists.flatten()
    names = [items.field(k).to_pylist() for k in ("name", "term")]
    return names, items.field("value").to_numpy()


def score_rows(folder: Path) -> dict[tuple[str, str], pa.Table]:
    """Return the rows of score files by folder and kind (active, passive or neither)."""
    found: dict[tuple[str, str], list[pa.Table]] = defaultdict(list)
    for file in sorted(folder.rglob("*_scores/**/*.avro")):
        kind = "-".join(file.stem.split("-")[2:])
        found[str(file.parent.relative_to(folder)), kind].append(records(file))
    return {key: pa.concat_tables(tables).sort_by("uid") for key, tables in found.items()}


def assert_same_scores(here: dict[Any, pa.Table], there: dict[Any, pa.Table]) -> None:
    assert there.keys() == here.keys()
    for key, table in here.items():
        assert there[key]["uid"] == table["uid"], key
        assert tables_differ(there[key], table) < SINGLE, key


def test_active_and_passive_rows_variances_and_partitions(data: Data, tmp_path: Path) -> None:
    """A total holds what was trained until then; variances leave the dispersion out."""
    limits = {"min_active_rows": 9, "max_active_rows": 14}
    coordinates = {
        "global": {**GLOBAL, "variance": "full"},
        "per-user": {**PER_USER, **limits},
        "per-item": {**PER_ITEM, "variance": "simple", "max_active_rows": 30, "reweight": False},
    }
    avro = {"partitions": {"per-user": 4}}
    _, there = on_both(data, tmp_path, task=LINEAR, coordinates=coordinates, avro=avro, seed=3)
    kinds: dict[str, set[str]] = defaultdict(set)
    for folder, kind in score_rows(there):
        kinds[folder].add(kind)
    assert kinds["global/train_scores"] == kinds["per-item/validation_scores/partitionId=0"] == {""}
    for folder in ("per-item/train_scores/partitionId=0", "per-user/train_scores/partitionId=3"):
        assert kinds[folder] == {"active", "passive"}
    entry = json.loads((there / "manifest.json").read_text())["coordinates"]
    assert entry["per-user"]["entities"] == "integers"
    assert entry["per-item"]["entities"] == "text"
    assert entry["per-item"]["dispersion"] != 1.0


@pytest.mark.slow
@pytest.mark.parametrize("homes", [2, 5])
def test_earlier_models_passes_and_many_files(
    data: Data, tmp_path: Path, homes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entities without rows keep their models; a total holds all; there is a model per pass."""
    monkeypatch.setattr("gdmix.engines.spark.reading._ROWS_PER_HOME", 460 // homes)
    monkeypatch.setattr("gdmix.data.score_files._ROWS_PER_PIECE", 50)
    before = Data.write(tmp_path / "before", make_rows(300, 9, new=8), make_rows(90, 8))
    varying = {"global": GLOBAL, "per-user": {**PER_USER, "variance": "simple"}}
    run(
        configured(
            before,
            tmp_path / "earlier",
            "local",
            coordinates={**varying, "per-item": PER_ITEM},
            avro={"partitions": {"per-user": 2}},
        )
    )
    limits = {"max_active_rows": 14, "negative_sampling": 0.7}
    coordinates = {
        "global": {**GLOBAL, "variance": "simple"},
        "per-user": {**PER_USER, "variance": "full", **limits},
        "per-item": {**PER_ITEM, "locked": True, "min_active_rows": 30},
        "factors": {"type": "factorization", "entities": ["user", "item"], "rank": 2},
    }
    _, there = on_both(
        data,
        tmp_path,
        coordinates=coordinates,
        passes=2,
        avro={"partitions": {"per-user": 2, "per-item": 7}, "score": "s", "own_score": "own"},
        initial_model=str(tmp_path / "earlier"),
        output_models="all",
    )
    assert {p.name for p in (there / "passes").iterdir()} == {"1", "2"}
    files = [p.name for p in (there / "per-user/train_scores/partitionId=0").iterdir()]
    shares = -(-homes // 2)
    assert {name[:10] for name in files} == {f"part-{k:05d}" for k in range(shares)}
    assert len(list((there / "global/train_scores").iterdir())) == homes


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_folder(data: Data, tmp_path: Path) -> None:
    def stop(step: Any) -> None:
        if step.coordinate == "per-user":
            raise KeyboardInterrupt

    here, there = tmp_path / "local", tmp_path / "spark"
    run(configured(data, here, "local"))
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        run(configured(data, there, "spark"), on_step=stop)
    run(configured(data, there, "spark"), resume=True)
    assert_same_folders(here, there)


@pytest.mark.slow
def test_a_gdmix_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    (tmp_path / "lr.yaml").write_text(YAML, encoding="utf-8")
    for engine in ("local", "spark"):
        limits = {"coordinates.per-item.max_active_rows": "10", "engine": engine}
        run(load_run(Path("lr.yaml"), {**limits, "output": engine}).config)
    assert_same_folders(Path("local"), Path("spark"))


@pytest.mark.slow
def test_scores_of_an_avro_model(data: Data, tmp_path: Path, spark: Any) -> None:
    from gdmix.engines.spark.scoring import score_to_files

    run(configured(data, tmp_path / "m", "spark", output_models="best"))
    rows = str(data.validation)
    score_to_files(spark, tmp_path / "m", rows, tmp_path / "there", components=True)
    score_to_file(tmp_path / "m", [rows], tmp_path / "here.parquet", components=True)
    parts = sorted((tmp_path / "there").glob("*.parquet"))
    found = pa.concat_tables(map(pq.read_table, parts)).sort_by("uid")
    wanted = pq.read_table(tmp_path / "here.parquet").sort_by("uid")
    assert tables_differ(found, wanted) < 1e-12


@pytest.mark.slow
def test_no_models_and_names_that_avro_can_not_tell_apart(data: Data, tmp_path: Path) -> None:
    hashed = {
        name: {"columns": list(columns), "hash_buckets": 8} for name, columns in FEATURES.items()
    }
    both = {"per-user": {**PER_USER, "features": ["row", "more"]}}
    features = {"row": hashed["row"], "more": hashed["more"]}
    said = []
    for engine in ("local", "spark"):
        config = configured(data, tmp_path / engine, engine, coordinates=both, features=features)
        with pytest.raises(ModelError, match="two hashed bags") as caught:
            run(config)
        said.append(str(caught.value).replace(engine, ""))
        assert not (tmp_path / engine).exists()
    assert said[0] == said[1]
    only = configured(
        data, tmp_path / "none", "spark", coordinates=both, features=features, output_models="none"
    )
    run(only, overwrite=True)
    assert {p.name for p in (tmp_path / "none/per-user").iterdir()} == {
        "metric",
        "train_scores",
        "validation_scores",
    }
