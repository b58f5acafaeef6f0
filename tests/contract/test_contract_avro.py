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

from gdmix.config import RunConfig
from gdmix.data import avro
from gdmix.model.store import read_model
from gdmix.runs import run

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
        "avro": {"partitions": {"per-user": 3}},
        "engine": engine,
        "spark": {"partitions": 4},
        "scratch": str(output.parent / "scratch"),
        "output": str(output),
        "threads": 1,
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
            assert_same_manifests(*(json.loads((f / file).read_text()) for f in (here, there)))
    assert_same_scores(score_rows(here), score_rows(there))


def assert_same_manifests(own: dict[str, Any], theirs: dict[str, Any]) -> None:
    pairs = [(own["coordinates"][name], theirs["coordinates"][name]) for name in own["coordinates"]]
    dispersions = [[entry.pop("dispersion", 1.0) for entry in pair] for pair in pairs]
    assert all(b == pytest.approx(a, abs=1e-9) for a, b in dispersions)
    assert theirs == own


def all_but_scores(folder: Path) -> set[str]:
    files = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    return {f for f in files if "_scores/" not in f}


def records(file: Path) -> pa.Table:
    batches = list(avro.read_batches(file))
    return pa.Table.from_batches(batches, None if batches else avro.read_schema(file))


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
    here, there = on_both(data, tmp_path, task=LINEAR, coordinates=coordinates, seed=3)
    scores = score_rows(there)
    for name, partitions in {"per-user": 3, "per-item": 1}.items():
        for k in range(partitions):
            rows = {kind: t for (f, kind), t in scores.items() if f"{name}/train" in f}
            assert rows.keys() == {"active", "passive"}
            assert min(t.num_rows for t in rows.values()) > 0
    entry = json.loads((there / "manifest.json").read_text())["coordinates"]
    assert entry["per-user"]["entities"] == "integers"
    assert entry["per-item"]["entities"] == "text"
    assert entry["per-item"]["dispersion"] != 1.0
