"""The native model folder: a versioned manifest, feature indices, coefficients in Parquet.

    manifest.json                     format version, task, columns, bags, coordinates
    feature_index/<bag>.parquet       name, term; the row's number is the feature's
    <coordinate>/models/part-*.parquet
        fixed effect                  column, value
        random effect                 entity, columns (list), values (list)
    <coordinate>/models/*.avro        instead, with `format: avro` (`photon_avro`)

The manifest is written last: a folder that has one is whole. `docs/formats.md` is the contract.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gdmix._version import __version__
from gdmix.config import AvroLayout, BinnedColumn, ColumnRoles, FeatureBag
from gdmix.data.feature_index import FeatureIndex
from gdmix.data.write import link_file, write_json, write_table, write_tables
from gdmix.errors import ModelError
from gdmix.model.coefficients import FixedCoefficients, RandomCoefficients
from gdmix.model.mixed_model import LOSSES, ExternalModel, LinearModel, TrainedModel
from gdmix.model.photon_avro import model_files, read_models, write_models

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
PART = "part-00000.parquet"
_ENTITIES_PER_PIECE = 50_000


def is_model_folder(path: Path) -> bool:
    """Whether a folder holds a whole model of ours, of whatever version."""
    try:
        return bool(_read_manifest(path)["format"] == "gdmix")
    except (ModelError, KeyError, TypeError):
        return False


def write_model(
    model: TrainedModel,
    folder: Path,
    avro: AvroLayout | None = None,
    file_of: Callable[[LinearModel], Path | None] = lambda model: None,
) -> None:
    """Write a model into an empty folder.

    Parameters
    ----------
    avro
        Write coefficients as Photon ML and GDMix have them, instead of in Parquet.
    file_of
        Tells where `write_coordinate` has written a coordinate already, on the same disk.

    Raises
    ------
    OutputError
        If the system refuses to write there.
    """
    for bag, index in model.indices.items():
        table = pa.table({"name": index.names, "term": index.terms})
        write_table(table, folder / "feature_index" / f"{bag}.parquet")
    for name, coordinate in model.linear.items():
        if avro is None:
            written = file_of(coordinate)
            if written is None or not link_file(written, folder / name / "models" / PART):
                write_coordinate(coordinate, folder / name / "models")
        else:
            write_models(
                coordinate,
                model.feature_names(name),
                model.task,
                folder / name / "models",
                partitions=avro.partitions.get(name, 1),
            )
    write_json(_manifest(model, avro is not None), folder / MANIFEST)


def read_model(folder: Path) -> TrainedModel:
    """Read a model folder.

    Raises
    ------
    ModelError
        If it is no model folder, is damaged, or was written by a later version.
    """
    manifest = _read_manifest(folder)
    if not isinstance(manifest, dict) or manifest.get("format") != "gdmix":
        raise ModelError(f"{folder}: {MANIFEST} is not one of a gdmix model")
    version = manifest.get("version")
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise ModelError(
            f"{folder}: the model has format version {version}, "
            f"this gdmix ({__version__}) reads up to {FORMAT_VERSION}; install a newer one"
        )
    try:
        if manifest["task"] not in LOSSES:
            raise ValueError(f"unknown task '{manifest['task']}'")
        bags = {name: FeatureBag.model_validate(bag) for name, bag in manifest["bags"].items()}
        indices = {name: _read_index(folder / "feature_index" / f"{name}.parquet") for name in bags}
        coordinates = {
            name: _read_any(folder / name / "models", entry, indices)
            for name, entry in manifest["coordinates"].items()
        }
        columns = ColumnRoles.model_validate(manifest["columns"])
        derived = {
            name: tuple(p if isinstance(p, str) else BinnedColumn.model_validate(p) for p in parts)
            for name, parts in manifest.get("derived_entities", {}).items()
        }
        model = TrainedModel(manifest["task"], columns, bags, indices, coordinates, derived)
        _check_columns(folder, model)
    except KeyError as error:
        raise ModelError(f"{folder / MANIFEST}: damaged: lacks {error}") from None
    except (TypeError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{folder / MANIFEST}: damaged: {reason}") from None
    return model


def _read_manifest(folder: Path) -> Any:
    path = folder / MANIFEST
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        reason = f"has no {MANIFEST}" if folder.is_dir() else "no such folder"
        raise ModelError(f"{folder}: is not a model: {reason}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: can't be read: {error}") from None


def _manifest(model: TrainedModel, avro: bool) -> dict[str, Any]:
    return {
        "format": "gdmix",
        "version": FORMAT_VERSION,
        "written_by": __version__,
        "task": model.task,
        "columns": model.columns.model_dump(mode="json"),
        "bags": {name: bag.model_dump(mode="json") for name, bag in model.bags.items()},
        "derived_entities": {
            name: [p if isinstance(p, str) else p.model_dump(mode="json") for p in parts]
            for name, parts in model.derived.items()
        },
        "coordinates": {
            name: _describe_external(c)
            if isinstance(c, ExternalModel)
            else describe_coordinate(c) | (_describe_avro(c) if avro else {})
            for name, c in model.coordinates.items()
        },
    }


def _describe_avro(model: LinearModel) -> dict[str, Any]:
    entities = getattr(model.coefficients, "entities", pa.array([], pa.int64()))
    integers = pa.types.is_integer(entities.type)
    return {"format": "avro", "entities": "integers" if integers else "text"}


def _describe_external(model: ExternalModel) -> dict[str, Any]:
    return {"type": model.type, **asdict(model)}


def describe_coordinate(model: LinearModel) -> dict[str, Any]:
    """Return what a manifest says of a coordinate."""
    return {
        "type": model.type,
        "features": list(model.features),
        "intercept": model.intercept,
        "entity": model.entity,
    }


def write_coordinate(model: LinearModel, folder: Path) -> None:
    """Write a coordinate's coefficients.

    Raises
    ------
    OutputError
        If the system refuses to write there.
    """
    write_tables(_coefficients_to_arrow(model.coefficients), folder / PART)


def _coefficients_to_arrow(
    coefficients: FixedCoefficients | RandomCoefficients,
) -> Iterator[pa.Table]:
    if isinstance(coefficients, FixedCoefficients):
        columns = np.arange(coefficients.values.size, dtype=np.uint32)
        yield pa.table({"column": columns, "value": coefficients.values})
        return
    for first in range(0, max(len(coefficients), 1), _ENTITIES_PER_PIECE):
        entities = coefficients.entities.slice(first, _ENTITIES_PER_PIECE)
        ends = coefficients.indptr[first : first + len(entities) + 1]
        own = slice(ends[0], ends[-1])
        offsets = pa.array(ends - ends[0])
        yield pa.table(
            {
                "entity": entities,
                "columns": pa.LargeListArray.from_arrays(offsets, coefficients.columns[own]),
                "values": pa.LargeListArray.from_arrays(offsets, coefficients.values[own]),
            }
        )


def _read_parts(folder: Path, columns: list[str]) -> pa.Table:
    files = sorted(folder.glob("part-*.parquet"))
    if not files:
        raise ModelError(f"{folder}: holds no part-*.parquet file")
    parts = [_read_parquet(file, columns) for file in files]
    return pa.concat_tables(parts, promote_options="permissive")


def _read_parquet(file: Path, columns: list[str]) -> pa.Table:
    try:
        with pq.ParquetFile(file) as parquet:
            return parquet.read().select(columns)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ModelError(f"{file}: damaged or missing: {' '.join(str(error).split())}") from None


def _read_index(file: Path) -> FeatureIndex:
    table = _read_parquet(file, ["name", "term"])
    return FeatureIndex(table["name"], table["term"])


def read_coordinate(folder: Path, entry: Mapping[str, Any]) -> LinearModel:
    """Read what `write_coordinate` wrote.

    Parameters
    ----------
    entry
        What `describe_coordinate` said of it.

    Raises
    ------
    ModelError
        If a file is missing or damaged.
    """
    coefficients: FixedCoefficients | RandomCoefficients
    if entry["type"] == "fixed_effect":
        table = _read_parts(folder, ["column", "value"])
        coefficients = FixedCoefficients(_to_numpy(table["value"], np.float64))
    else:
        table = _read_parts(folder, ["entity", "columns", "values"])
        columns = _one_array(table["columns"])
        sizes = columns.value_lengths().to_numpy()
        coefficients = RandomCoefficients(
            _entities(table["entity"]),
            np.concatenate(([0], np.cumsum(sizes))).astype(np.int64),
            _to_numpy(columns.flatten(), np.uint32),
            _to_numpy(_one_array(table["values"]).flatten(), np.float64),
        )
    return LinearModel(
        tuple(entry["features"]), bool(entry["intercept"]), coefficients, entry["entity"]
    )


def _read_any(
    folder: Path, entry: Mapping[str, Any], indices: Mapping[str, FeatureIndex]
) -> LinearModel | ExternalModel:
    if entry["type"] == ExternalModel.type:
        return ExternalModel(entry["uid"], entry["score"], entry["missing"])
    if entry.get("format") == "avro":
        return _read_avro(folder, entry, indices)
    return read_coordinate(folder, entry)


def _read_avro(
    folder: Path, entry: Mapping[str, Any], indices: Mapping[str, FeatureIndex]
) -> LinearModel:
    models = read_models(model_files(folder))
    own = [indices[bag] for bag in entry["features"]]
    kind = pa.int64() if entry["entities"] == "integers" else pa.large_string()
    fixed = entry["type"] == "fixed_effect"
    return LinearModel(
        tuple(entry["features"]),
        bool(entry["intercept"]),
        models.fixed(own) if fixed else models.random(own, kind),
        entry["entity"],
    )


def _check_columns(folder: Path, model: TrainedModel) -> None:
    for name, coordinate in model.linear.items():
        width = 1 + sum(len(model.indices[bag]) for bag in coordinate.features)
        coefficients = coordinate.coefficients
        if isinstance(coefficients, FixedCoefficients):
            fits = coefficients.values.size == width
        else:
            fits = coefficients.columns.size == coefficients.values.size
            fits = fits and int(coefficients.columns.max(initial=0)) < width
        if not fits:
            raise ModelError(f"{folder}: coordinate '{name}' does not fit its feature index")


def _entities(column: pa.ChunkedArray) -> pa.Array:
    """Return entities as int64 or large_string, whatever their writer had."""
    integers = pa.types.is_integer(column.type)
    return _one_array(column.cast(pa.int64() if integers else pa.large_string()))


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _to_numpy(column: Any, kind: Any) -> Any:
    # A copy: what Arrow lends is read-only, and kernels would be compiled again for that.
    return np.array(column.to_numpy(), kind)
