"""The native model folder: a versioned manifest, feature indices, a folder per coordinate.

    manifest.json                     format version, task, columns, bags, coordinates
    feature_index/<bag>.parquet       name, term; the row's number is the feature's; of a hashed
                                      bag there is none
    <coordinate>/models/*             what its kind of model writes (`kinds`): coefficients in
                                      Parquet, with `format: avro` in Avro (`photon_avro`)

The manifest is written last: a folder that has one is whole. `docs/formats.md` is the contract.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from gdmix._version import __version__
from gdmix.config import AvroLayout, BinnedColumn, ColumnRoles, FeatureBag
from gdmix.data.feature_index import FeatureIndex, HashedIndex
from gdmix.data.write import link_files, write_json, write_table
from gdmix.errors import ModelError
from gdmix.model.base import CoordinateModel
from gdmix.model.coefficient_files import read_parquet
from gdmix.model.coefficients import FixedCoefficients
from gdmix.model.kinds import read_coordinate
from gdmix.model.linear import LinearModel
from gdmix.model.mixed_model import LOSSES, TrainedModel
from gdmix.model.photon_avro import described, write_models
from gdmix.model.stored import StoredModel

FolderOf = Callable[[CoordinateModel], Path | None]

MANIFEST = "manifest.json"
FORMAT_VERSION = 1


def is_model_folder(path: Path) -> bool:
    """Whether a folder holds a whole model of ours, of whatever version."""
    try:
        return bool(_read_manifest(path)["format"] == "gdmix")
    except (ModelError, KeyError, TypeError):
        return False


def nowhere(model: CoordinateModel) -> None:
    """Return that a model lies in no folder."""


def write_model(
    model: TrainedModel,
    folder: Path,
    avro: AvroLayout | None = None,
    folder_of: FolderOf = nowhere,
) -> None:
    """Write a model into a folder, which has nothing yet but what `StoredModel`s have there.

    Parameters
    ----------
    avro
        Write coefficients as Photon ML and GDMix have them, instead of in Parquet. Those that lie
        in such files already stay in these.
    folder_of
        Tells where `CoordinateModel.write` has written a model already, on the same disk.

    Raises
    ------
    OutputError
        If the system refuses to write there.
    """
    if avro is not None:
        loaded = {name: _to_convert(own) for name, own in model.coordinates.items()}
        model = replace(model, coordinates=loaded)
    for bag, index in model.indices.items():
        if isinstance(index, HashedIndex):
            continue
        table = pa.table({"name": index.names, "term": index.terms})
        write_table(table, folder / "feature_index" / f"{bag}.parquet")
    for name, coordinate in model.coordinates.items():
        own = folder / name / "models"
        if avro is None or not isinstance(coordinate, LinearModel):
            written = folder_of(coordinate)
            if written is None or not link_files(written, own):
                coordinate.write(own)
        else:
            features, partitions = model.feature_names(name), avro.partitions.get(name, 1)
            write_models(coordinate, features, model.task, own, partitions=partitions)
    write_json(_manifest(model, avro is not None), folder / MANIFEST)


def _to_convert(model: CoordinateModel) -> CoordinateModel:
    """Return a model in memory if its coefficients lie in files, and these are not in Avro."""
    if isinstance(model, StoredModel) and model.is_linear and not model.is_avro:
        return model.loaded
    return model


def read_model(folder: Path, stored: bool = False) -> TrainedModel:
    """Read a model folder.

    Parameters
    ----------
    stored
        Leave the coordinates' models on disk until someone looks at them.

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
        indices = {
            name: _read_index(folder / "feature_index" / f"{name}.parquet")
            if bag.hash_buckets is None
            else HashedIndex(bag.hash_buckets)
            for name, bag in bags.items()
        }
        coordinates = {
            name: (StoredModel if stored else read_coordinate)(
                folder / name / "models", entry, indices
            )
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
            name: c.describe() | (_describe_avro(c) if avro and isinstance(c, LinearModel) else {})
            for name, c in model.coordinates.items()
        },
    }


def _describe_avro(model: LinearModel) -> dict[str, Any]:
    coefficients = model.coefficients
    if isinstance(coefficients, FixedCoefficients):
        return described(pa.int64())  # it has none
    return described(coefficients.entities.type)


def _read_index(file: Path) -> FeatureIndex:
    table = read_parquet(file, ["name", "term"])
    return FeatureIndex(table["name"], table["term"])


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
