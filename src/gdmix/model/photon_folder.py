"""Folders of models that Photon ML or GDMix wrote, and folders of models for them.

Photon ML: ``fixed-effect/<coordinate>/coefficients/*.avro``, ``random-effect/...`` alike.
GDMix: ``<coordinate>/models/*.avro``.

What their models are multiplied with, a configuration tells: its coordinates, the feature bags
of these and the entity columns. Without a feature list a bag's features are those of the models.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gdmix.config import FeatureBag, FixedEffect, LinearSpec, ModelConfig, Task
from gdmix.data.feature_index import (
    INTERCEPT_NAME,
    FeatureIndex,
    HashedIndex,
    join_keys,
    split_keys,
)
from gdmix.data.keys import KeyTable, key_type
from gdmix.data.write import write_json
from gdmix.errors import ModelError, did_you_mean
from gdmix.model.coefficients import RandomCoefficients
from gdmix.model.linear import LinearModel
from gdmix.model.mixed_model import TrainedModel
from gdmix.model.photon_avro import (
    PhotonModels,
    model_files,
    natural_type,
    read_models,
    write_models,
)

log = logging.getLogger("gdmix")

_FIXED, _RANDOM, _COEFFICIENTS, _ID_INFO = (
    "fixed-effect",
    "random-effect",
    "coefficients",
    "id-info",
)
_PART = "part-00000.avro"
PHOTON_METADATA = "model-metadata.json"


def model_folders(folder: Path) -> dict[str, Path]:
    """Return the folders of Avro models by coordinate; none if it holds no such models."""
    photon = {
        f.parent.name: f
        for kind in (_FIXED, _RANDOM)
        for f in sorted((folder / kind).glob(f"*/{_COEFFICIENTS}"))
    }
    gdmix = {f.parent.name: f for f in sorted(folder.glob("*/models"))}
    return {name: f for name, f in (photon or gdmix).items() if any(f.glob("*.avro"))}


def read_folder(folder: Path, description: ModelConfig | None) -> TrainedModel:
    """Read the models of a folder; ids become integers if all of a coordinate are.

    Parameters
    ----------
    description
        What they apply to.

    Raises
    ------
    ModelError
        If a model is missing or damaged, or there is no description.
    """
    places = model_folders(folder)
    if description is None:
        raise ModelError(
            f"{folder}: does not say what its models apply to; name a configuration that does: "
            "its coordinates with features and entity columns"
        )
    models: dict[str, PhotonModels] = {}
    for name in description.linear:
        if name not in places:
            hint = did_you_mean(name, places) or f"; it holds {', '.join(places)}"
            raise ModelError(f"{folder}: holds no models of coordinate '{name}'{hint}")
        models[name] = read_models(model_files(places[name]), str(places[name]))
    for name in places.keys() - models.keys():
        log.warning("%s: left out the models of '%s', which is no coordinate", folder, name)
    indices = _indices(description, models)
    coordinates = {
        name: _coordinate(spec, models[name], indices) for name, spec in description.linear.items()
    }
    task = _task(folder, {m.task for m in models.values() if m.task}, description.task)
    bags, derived = description.used_features, description.derived_entities
    return TrainedModel(task, description.columns, bags, indices, coordinates, derived)


def _task(folder: Path, found: set[Task], otherwise: Task) -> Task:
    if len(found) > 1:
        raise ModelError(f"{folder}: holds models of several tasks: {', '.join(sorted(found))}")
    return found.pop() if found else otherwise


def _coordinate(
    spec: LinearSpec, models: PhotonModels, indices: Mapping[str, FeatureIndex]
) -> LinearModel:
    own = [indices[bag] for bag in spec.features]
    if isinstance(spec, FixedEffect):
        return LinearModel(spec.features, models.has_intercept, models.fixed(own))
    coefficients = models.random(own, natural_type(models.ids))
    return LinearModel(spec.features, models.has_intercept, coefficients, spec.key)


def with_entity_types(model: TrainedModel, types: Mapping[str, pa.DataType]) -> TrainedModel:
    """Return the same model, ids that are integers made text where rows have them as text."""
    coordinates = dict(model.coordinates)
    for name, coordinate in model.linear.items():
        coefficients, kind = coordinate.coefficients, types.get(coordinate.entity or "")
        if not isinstance(coefficients, RandomCoefficients) or kind is None:
            continue
        if pa.types.is_integer(coefficients.entities.type) and key_type(kind) == pa.large_string():
            text = coefficients.entities.cast(pa.large_string())
            in_order = coefficients.take(pc.sort_indices(text).to_numpy().astype(np.int64))
            entities = in_order.entities.cast(pa.large_string())
            coordinates[name] = replace(
                coordinate, coefficients=replace(in_order, entities=entities)
            )
    return replace(model, coordinates=coordinates)


def _indices(
    description: ModelConfig, models: Mapping[str, PhotonModels]
) -> dict[str, FeatureIndex]:
    bags = description.used_features
    indices = {
        name: FeatureIndex.from_feature_list(bag.feature_list)
        for name, bag in bags.items()
        if bag.feature_list is not None
    } | {name: HashedIndex(bag.hash_buckets) for name, bag in bags.items() if bag.hash_buckets}
    found = {name: KeyTable(pa.large_string()) for name in bags if name not in indices}
    for name, spec in description.linear.items():
        open_bags = [bag for bag in spec.features if bag in found]
        names, terms = models[name].names, models[name].terms
        for listed in (indices[bag] for bag in spec.features if bag in indices):
            rest = pa.array(listed.find(names, terms) < 0)
            names, terms = names.filter(rest), terms.filter(rest)
        is_feature = pc.not_equal(names, INTERCEPT_NAME)
        names, terms = names.filter(is_feature), terms.filter(is_feature)
        for bag in open_bags:
            mine = (
                np.ones(len(names), np.bool_)
                if len(open_bags) == 1
                else pc.is_in(names, value_set=_feature_names(bags[bag])).to_numpy(
                    zero_copy_only=False
                )
            )
            keys = join_keys(names, terms).filter(pa.array(mine))
            found[bag].insert(keys.take(pc.sort_indices(keys)))
    for bag, table in found.items():
        indices[bag] = FeatureIndex(*split_keys(table.keys()))
    return {name: indices[name] for name in bags}


def _feature_names(bag: FeatureBag) -> pa.Array:
    """Return the names that features of plain columns have."""
    stems = [c.removesuffix("_indices") for c in bag.columns]
    return pa.array([*bag.columns, *stems], pa.large_string())


def write_photon_folder(model: TrainedModel, folder: Path, cut: float = 0.0) -> None:
    """Write models as Photon ML lays them out, into an empty folder.

    Parameters
    ----------
    cut
        See `write_models`.

    Raises
    ------
    OutputError
        If the system refuses to write there.
    """
    for name in model.coordinates.keys() - model.linear.keys():
        log.warning("coordinate '%s' has no coefficients: left out", name)
    for name, coordinate in model.linear.items():
        shard = coordinate.features[0] if len(coordinate.features) == 1 else name
        info = [shard] if coordinate.entity is None else [coordinate.entity, shard]
        place = folder / (_FIXED if coordinate.entity is None else _RANDOM) / name
        features = model.feature_names(name)
        target = place / _COEFFICIENTS
        write_models(coordinate, features, model.task, target, cut=cut, fixed_file=_PART)
        (place / _ID_INFO).write_text("\n".join(info) + "\n", encoding="utf-8")
    write_json({"modelType": model.task.upper()}, folder / PHOTON_METADATA)


_CROSS = "_gdmixcross_"


def split_crossed(model: LinearModel, names: pa.Array, terms: pa.Array) -> PhotonModels:
    """Take a fixed effect on crossed features apart into a model per entity.

    A feature ``<entity>_gdmixcross_<feature>`` becomes ``<feature>`` of the entity's model; as
    GDMix trains cohorts. ``<entity>_gdmixcross_`` and the intercept's own name give an intercept.

    Parameters
    ----------
    names, terms
        Of the columns, the intercept first.

    Raises
    ------
    ModelError
        If it is no fixed effect, or one of its features is not crossed.
    """
    if isinstance(model.coefficients, RandomCoefficients):
        raise ModelError("is a random effect: there is nothing to split")
    values, names, terms = model.coefficients.values[1:], names[1:], terms[1:]
    variances = model.coefficients.variances
    if model.intercept and model.coefficients.values[0] != 0:
        log.warning("the intercept, %g, is of no entity: left out", model.coefficients.values[0])
    parts = pc.split_pattern(names, _CROSS, max_splits=1)
    plain = pc.less(pc.list_value_length(parts), 2)
    if pc.any(plain).as_py():
        first = names[pc.index(plain, True).as_py()].as_py()
        raise ModelError(f"feature '{first}' is not crossed: has no '{_CROSS}'")
    owners = pc.list_element(parts, 0).dictionary_encode()
    features = pc.list_element(parts, 1)
    features = pc.if_else(pc.equal(features, ""), INTERCEPT_NAME, features)
    table = KeyTable(pa.large_string())
    codes = table.insert(join_keys(features, terms))
    order = np.argsort(owners.indices.to_numpy(), kind="stable")
    counts = np.bincount(owners.indices.to_numpy(), minlength=len(owners.dictionary))
    distinct_names, distinct_terms = split_keys(table.keys())
    return PhotonModels(
        "crossed features",
        owners.dictionary.cast(pa.large_string()),
        np.concatenate(([0], np.cumsum(counts))),
        codes[order],
        values[order],
        distinct_names,
        distinct_terms,
        None,
        None if variances is None else variances[1:][order],
    )


def with_split_crossed(model: TrainedModel, coordinate: str, entity: str) -> TrainedModel:
    """Return a model whose fixed effect on crossed features is a random effect of `entity`.

    Raises
    ------
    ModelError
        If the coordinate is unknown, or has no crossed features alone.
    """
    crossed = model.coordinate(coordinate)
    try:
        models = split_crossed(crossed, *model.feature_names(coordinate))
    except ModelError as error:
        raise ModelError(f"coordinate '{coordinate}': {error}") from None
    own = pc.not_equal(models.names, INTERCEPT_NAME)
    index = FeatureIndex(models.names.filter(own), models.terms.filter(own))
    others = (name for name in model.coordinates if name != coordinate)
    shared = {bag for name in others for bag in model.coordinates[name].features}
    bag = _free_name(f"{coordinate}-split", model.bags)
    columns = tuple(c for b in crossed.features for c in model.bags[b].columns)
    kept: Sequence[str] = [b for b in model.bags if b not in crossed.features or b in shared]
    random = LinearModel(
        (bag,), models.has_intercept, models.random([index], natural_type(models.ids)), entity
    )
    random = replace(random, dispersion=crossed.dispersion)
    return replace(
        model,
        bags={b: model.bags[b] for b in kept} | {bag: FeatureBag(columns=columns)},
        indices={b: model.indices[b] for b in kept} | {bag: index},
        coordinates={n: random if n == coordinate else c for n, c in model.coordinates.items()},
    )


def _free_name(name: str, taken: Mapping[str, object]) -> str:
    while name in taken:
        name += "-1"
    return name
