"""The kinds of models that a model folder or a checkpoint may hold, and how each is read."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from gdmix.data.feature_index import FeatureIndex
from gdmix.errors import ModelError
from gdmix.model.base import CoordinateModel, Reader
from gdmix.model.coefficient_files import read_fixed, read_random
from gdmix.model.custom import CustomModel, read_custom
from gdmix.model.external import ExternalModel, read_external
from gdmix.model.factorization import FactorizationModel, read_factorization
from gdmix.model.linear import LinearModel
from gdmix.model.photon_avro import model_files, read_models


def read_coordinate(
    folder: Path, entry: Mapping[str, Any], indices: Mapping[str, FeatureIndex]
) -> CoordinateModel:
    """Read the model of a coordinate.

    Parameters
    ----------
    folder
        What `CoordinateModel.write` wrote into.
    entry
        What `CoordinateModel.describe` said.
    indices
        The feature index of each bag.

    Raises
    ------
    ModelError
        If a file is missing or damaged.
    ValueError
        If this gdmix knows no such type.
    """
    reader = _READERS.get(entry["type"]) or _reader_elsewhere(entry["type"])
    if reader is None:
        raise ValueError(f"unknown type of coordinate '{entry['type']}'; install a newer gdmix")
    return reader(folder, entry, indices)


def _read_linear(
    folder: Path, entry: Mapping[str, Any], indices: Mapping[str, FeatureIndex]
) -> LinearModel:
    fixed = entry["type"] == "fixed_effect"
    features, intercept = tuple(entry["features"]), bool(entry["intercept"])
    dispersion = float(entry.get("dispersion", 1.0))
    if entry.get("format") != "avro":
        coefficients = read_fixed(folder) if fixed else read_random(folder)
        return LinearModel(features, intercept, coefficients, entry["entity"], dispersion)
    models = read_models(model_files(folder))
    own = [indices[bag] for bag in features]
    kind = pa.int64() if entry["entities"] == "integers" else pa.large_string()
    coefficients = models.fixed(own) if fixed else models.random(own, kind)
    if coefficients.variances is not None:
        coefficients = replace(coefficients, variances=coefficients.variances * dispersion)
    return LinearModel(features, intercept, coefficients, entry["entity"], dispersion)


def _reader_elsewhere(kind: str) -> Reader | None:
    """Import the reader of a kind that lies above this layer, because of what it imports."""
    module, _, name = _ELSEWHERE.get(kind, "").partition(":")
    try:
        return getattr(importlib.import_module(module), name) if module else None
    except ModuleNotFoundError as error:
        raise ModelError(
            f"a coordinate of type {kind} needs {error.name}, which is not installed: "
            f"pip install 'gdmix[{kind}]'"
        ) from None


# By place: to import PyTorch is for those who read such a model (see .importlinter).
_ELSEWHERE = {"deep": "gdmix.deep.model:read_deep"}

_READERS: Mapping[str, Reader] = {
    "fixed_effect": _read_linear,
    "random_effect": _read_linear,
    CustomModel.type: read_custom,
    FactorizationModel.type: read_factorization,
    ExternalModel.type: read_external,
}
