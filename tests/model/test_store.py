from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdmix.config import ColumnRoles, FeatureBag
from gdmix.data.dataset import load_rows
from gdmix.data.feature_index import FeatureIndex
from gdmix.errors import ModelError
from gdmix.model.coefficients import FixedCoefficients, RandomCoefficients
from gdmix.model.linear import LinearModel
from gdmix.model.mixed_model import TrainedModel
from gdmix.model.store import is_model_folder, read_model, write_model

SAVED_V1 = Path(__file__).parent / "saved_v1"


def random_effect(entities: pa.Array, seed: int, n_columns: int) -> RandomCoefficients:
    rng = np.random.default_rng(seed)
    owned = [
        np.concatenate(([0], 1 + np.flatnonzero(rng.random(n_columns) < 0.5))) for _ in entities
    ]
    indptr = np.concatenate(([0], np.cumsum([len(c) for c in owned]))).astype(np.int64)
    columns = np.concatenate([np.empty(0, np.uint32), *owned]).astype(np.uint32)
    values = rng.normal(size=columns.size) * 10.0 ** rng.integers(-300, 300, columns.size)
    return RandomCoefficients(entities, indptr, columns, values)


def make_model() -> TrainedModel:
    strings = pa.array(["", "a", "z'\"", "ä\n"], pa.large_string())
    return TrainedModel(
        "poisson_regression",
        ColumnRoles(response="clicks", offset="log_views"),
        {
            "one": FeatureBag(columns=("x", "tag")),
            "two": FeatureBag(columns=("i_indices", "i_values"), feature_list=Path("f.csv")),
        },
        {
            "one": FeatureIndex(["x", "tag", "tag"], ["", "ünï", ""]),
            "two": FeatureIndex(["i", "i"], ["0", "1"]),
        },
        {
            "global": LinearModel(
                ("two", "one"),
                True,
                FixedCoefficients(np.array([0.1, -0.0, 1e-310, 1 / 3, np.pi, -1e300])),
            ),
            "level": LinearModel((), True, FixedCoefficients(np.array([2.5]))),
            "by-number": LinearModel(
                ("one",), True, random_effect(pa.array([-5, 0, 2**62]), 1, 3), "user"
            ),
            "by-name": LinearModel(("one", "two"), False, random_effect(strings, 2, 5), "item"),
            "bare": LinearModel((), True, random_effect(pa.array([1, 2]), 3, 0), "user"),
            "empty": LinearModel(
                ("one",), True, random_effect(pa.array([], pa.int64()), 4, 3), "user"
            ),
        },
    )


def assert_same(one: TrainedModel, two: TrainedModel) -> None:
    assert (one.task, one.columns, one.bags) == (two.task, two.columns, two.bags)
    assert one.indices == two.indices
    assert list(one.coordinates) == list(two.coordinates)
    for name, a in one.coordinates.items():
        b = two.coordinates[name]
        assert (a.features, a.intercept, a.entity) == (b.features, b.intercept, b.entity)
        assert a.coefficients.values.tobytes() == b.coefficients.values.tobytes()
        assert b.coefficients.values.dtype == np.float64
        if isinstance(a.coefficients, RandomCoefficients):
            assert isinstance(b.coefficients, RandomCoefficients)
            assert a.coefficients.entities.equals(b.coefficients.entities)
            for field in ("indptr", "columns"):
                left, right = getattr(a.coefficients, field), getattr(b.coefficients, field)
                np.testing.assert_array_equal(left, right)
                assert left.dtype == right.dtype


def test_round_trip_is_exact_to_the_bit(tmp_path: Path) -> None:
    model = make_model()
    write_model(model, tmp_path / "model")
    assert is_model_folder(tmp_path / "model")
    assert_same(model, read_model(tmp_path / "model"))


def test_several_part_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    model = make_model()
    write_model(model, tmp_path)
    for name in ("by-number", "by-name", "empty"):
        part = tmp_path / name / "models" / "part-00000.parquet"
        table = pq.read_table(part)
        part.unlink()
        for i in range(3):
            some = table.slice(2 * i, 2 if i < 2 else None)
            pq.write_table(some, part.with_name(f"part-{i:05d}.parquet"))
    (tmp_path / "by-name" / "models" / "_SUCCESS").touch()
    assert_same(model, read_model(tmp_path))


def test_types_of_other_writers_are_read(tmp_path: Path) -> None:
    # Spark has no unsigned, no large types, and may write numbers as 32 bits.
    model = make_model()
    write_model(model, tmp_path)
    for name in ("by-number", "by-name"):
        part = tmp_path / name / "models" / "part-00000.parquet"
        table = pq.read_table(part)
        entity = pa.string() if name == "by-name" else pa.int64()
        schema = pa.schema(
            {"entity": entity, "columns": pa.list_(pa.int32()), "values": pa.list_(pa.float64())}
        )
        pq.write_table(table.cast(schema), part, store_schema=False)
    assert_same(model, read_model(tmp_path))


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    edit(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def rewrite(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path)


PART = "models/part-00000.parquet"
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "{0}: is not a model: no such folder"),
    "no manifest": (
        lambda f: (f / "manifest.json").unlink(),
        "{0}: is not a model: has no manifest.json",
    ),
    "broken JSON": (
        lambda f: (f / "manifest.json").write_text('{"format": "gdm'),
        "{0}/manifest.json: can't be read: Unterminated string",
    ),
    "not UTF-8": (
        lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe{}"),
        "{0}/manifest.json: can't be read: 'utf-8' codec",
    ),
    "not an object": (
        lambda f: (f / "manifest.json").write_text("[]"),
        "{0}: manifest.json is not one of a gdmix model",
    ),
    "another format": (
        lambda f: edit_manifest(f, lambda m: m.update(format="photon")),
        "{0}: manifest.json is not one of a gdmix model",
    ),
    "newer version": (
        lambda f: edit_manifest(f, lambda m: m.update(version=2)),
        "{0}: the model has format version 2, this gdmix (",
    ),
    "unknown task": (
        lambda f: edit_manifest(f, lambda m: m.update(task="ranking")),
        "{0}/manifest.json: damaged: unknown task 'ranking'",
    ),
    "no coordinates": (
        lambda f: edit_manifest(f, lambda m: m.pop("coordinates")),
        "{0}/manifest.json: damaged: lacks 'coordinates'",
    ),
    "unknown bag": (
        lambda f: edit_manifest(f, lambda m: m["bags"].pop("one")),
        "{0}/manifest.json: damaged: lacks 'one'",
    ),
    "missing part": (
        lambda f: (f / "by-name" / PART).unlink(),
        "{0}/by-name/models: holds no part-*.parquet file",
    ),
    "truncated part": (
        lambda f: truncate(f / "by-name" / PART),
        "{0}/by-name/models/part-00000.parquet: damaged or missing: ",
    ),
    "empty part": (
        lambda f: (f / "global" / PART).write_bytes(b""),
        "{0}/global/models/part-00000.parquet: damaged or missing: ",
    ),
    "part of another kind": (
        lambda f: shutil.copy(f / "global" / PART, f / "by-name" / PART),
        "{0}/by-name/models/part-00000.parquet: damaged or missing: ",
    ),
    "missing index": (
        lambda f: (f / "feature_index" / "one.parquet").unlink(),
        "{0}/feature_index/one.parquet: damaged or missing: ",
    ),
    "truncated index": (
        lambda f: truncate(f / "feature_index" / "one.parquet"),
        "{0}/feature_index/one.parquet: damaged or missing: ",
    ),
    "longer index": (
        lambda f: rewrite(
            f / "feature_index" / "one.parquet", pa.table({"name": ["x"] * 9, "term": [""] * 9})
        ),
        "{0}: coordinate 'global' does not fit its feature index",
    ),
    "shorter index": (
        lambda f: rewrite(
            f / "feature_index" / "one.parquet", pa.table({"name": ["x"], "term": [""]})
        ),
        "{0}: coordinate 'global' does not fit its feature index",
    ),
    "columns beyond the index": (
        lambda f: rewrite(
            f / "by-number" / PART,
            pa.table({"entity": [1], "columns": [[0, 4]], "values": [[0.5, 1.0]]}),
        ),
        "{0}: coordinate 'by-number' does not fit its feature index",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_line_that_names_the_file(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    write_model(make_model(), folder)
    inflict, message = DAMAGES[damage]
    inflict(folder)
    with pytest.raises(ModelError) as caught:
        read_model(folder)
    assert str(caught.value).startswith(message.format(folder))
    assert "\n" not in str(caught.value)


def test_whose_folder_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert not is_model_folder(folder)
    folder.mkdir()
    assert not is_model_folder(folder)
    (folder / "manifest.json").write_text("[1]")
    assert not is_model_folder(folder)
    write_model(make_model(), folder)
    edit_manifest(folder, lambda m: m.update(version=99))
    assert is_model_folder(folder)


def saved_v1_model() -> TrainedModel:
    """The model in `saved_v1`, written with ``write_model`` by gdmix 0.1.0; never write it anew."""
    bag = FeatureBag(columns=("x", "tags"))
    return TrainedModel(
        "logistic_regression",
        ColumnRoles(uid="id"),
        {"row": bag},
        {"row": FeatureIndex(["x", "tags", "tags"], ["", "p", "q"])},
        {
            "global": LinearModel(
                ("row",), True, FixedCoefficients(np.array([0.5, 2.0, -1.0, 0.25]))
            ),
            "per-user": LinearModel(
                ("row",),
                True,
                RandomCoefficients(
                    pa.array([7, 9]),
                    np.array([0, 2, 4]),
                    np.array([0, 1, 0, 3], np.uint32),
                    np.array([0.125, -1.0, -0.5, 3.0]),
                ),
                "user",
            ),
            "per-item": LinearModel(
                (),
                True,
                RandomCoefficients(
                    pa.array(["a", "b"], pa.large_string()),
                    np.array([0, 1, 2]),
                    np.zeros(2, np.uint32),
                    np.array([16.0, 32.0]),
                ),
                "item",
            ),
        },
    )


def test_a_model_saved_by_the_first_version_still_loads_and_scores() -> None:
    model = read_model(SAVED_V1)
    assert_same(saved_v1_model(), model)
    columns = {
        "id": [1, 2, 3],
        "x": [1.0, 0.5, -1.0],
        "tags": pa.array([["p"], ["q", "p"], []], pa.list_(pa.string())),
        "user": [7, 9, 8],
        "item": ["b", "a", "c"],
    }
    rows = load_rows(columns, model.row_schema(), model.indices, model.task, "strict")
    components = model.components(rows)
    np.testing.assert_allclose(components["global"], [1.5, 0.75, -1.5])
    np.testing.assert_allclose(components["per-user"], [-0.875, 2.5, 0.0])
    np.testing.assert_allclose(components["per-item"], [32.0, 16.0, 0.0])
