"""An earlier model as the start of a run: whether it fits, and under the run's feature index."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gdmix.config import CoordinateSpec, Factorization, FixedEffect, ModelConfig, RandomEffect
from gdmix.data.feature_index import FeatureIndex
from gdmix.errors import ConfigError, did_you_mean
from gdmix.model.base import CoordinateModel, Startable
from gdmix.model.coefficients import FixedCoefficients
from gdmix.model.factorization import FactorizationModel
from gdmix.model.linear import LinearModel
from gdmix.model.mixed_model import TrainedModel

I64 = NDArray[np.int64]

log = logging.getLogger("gdmix")


def check_initial_model(model: TrainedModel, config: ModelConfig) -> None:
    """Refuse a model that a run can't start from.

    Raises
    ------
    ConfigError
        One line per difference.
    """
    findings = []
    key = "initial_model" if config.prior is None else "prior.model"
    if model.task != config.task:
        findings.append(f"{key}: its task is {model.task}, that of this run {config.task}")
    known = ", ".join(model.coordinates)
    for name, spec in config.coordinates.items():
        if name in model.coordinates:
            findings += [
                f"coordinates.{name}: {what} is {here}, in {key} it is {there}"
                for what, here, there in _differences(spec, model.coordinates[name])
            ]
        elif name in config.locked:
            hint = did_you_mean(name, model.coordinates)
            findings.append(
                f"coordinates.{name}: is locked, but {key} has no '{name}'{hint}; it has: {known}"
            )
    for bag, own in config.used_features.items():
        here, there = own.hash_buckets, model.bags.get(bag, own).hash_buckets
        if here != there:
            findings.append(
                f"features.{bag}.hash_buckets: is {_or_none(here)}, in {key} it is "
                f"{_or_none(there)}: other columns"
            )
    if not set(model.coordinates) & set(config.coordinates):
        findings.append(f"{key}: has none of this run's coordinates; it has: {known}")
    if findings:
        raise ConfigError("\n".join(findings))
    for name in config.fitted.keys() & model.coordinates.keys():
        if isinstance(model.coordinates[name], LinearModel | FactorizationModel | Startable):
            continue
        log.warning("initial model: coordinate '%s' is fitted anew: it can't be started from", name)
    for name in model.coordinates:
        if name not in config.coordinates:
            log.warning("initial model: coordinate '%s' is not one of this run: left out", name)


def _differences(spec: CoordinateSpec, model: CoordinateModel) -> Iterator[tuple[str, str, str]]:
    """Yield what differs, here and in the model."""
    if spec.type != model.type:
        yield "type", spec.type, model.type
        return
    if isinstance(model, Startable):
        yield from model.differences(spec)
    if isinstance(model, FactorizationModel) and isinstance(spec, Factorization):
        if spec.key_columns != model.keys:
            yield "entities", _listed(spec.key_columns), _listed(model.keys)
        if spec.rank != model.rank:
            yield "rank", str(spec.rank), str(model.rank)
        for bags, side in zip(spec.bags_of_sides, model.sides, strict=True):
            if set(bags) != set(side.features):
                yield f"features.{side.key}", _listed(bags), _listed(side.features)
    if not isinstance(model, LinearModel) or not isinstance(spec, FixedEffect | RandomEffect):
        return
    if isinstance(spec, RandomEffect) and spec.key != model.entity:
        yield "entity", spec.key, str(model.entity)
    if set(spec.features) != set(model.features):
        yield "features", _listed(spec.features), _listed(model.features)
    if spec.intercept != model.intercept:
        yield "intercept", str(spec.intercept).lower(), str(model.intercept).lower()


def _or_none(buckets: int | None) -> str:
    return "none" if buckets is None else str(buckets)


def _listed(bags: tuple[str, ...]) -> str:
    return f"[{', '.join(bags)}]"


def all_aligned(
    config: ModelConfig, model: TrainedModel, indices: Mapping[str, FeatureIndex]
) -> dict[str, CoordinateModel]:
    """Return a model's coordinates that a run starts from, under the run's feature index."""
    result: dict[str, CoordinateModel] = {}
    for name, spec in config.coordinates.items():
        own = model.coordinates.get(name)
        if isinstance(own, LinearModel):
            result[name] = aligned(name, spec.bags, model, indices)
        elif isinstance(own, FactorizationModel) and isinstance(spec, Factorization):
            result[name] = _aligned_factors(own, spec, model.indices, indices)
        elif isinstance(own, Startable):
            result[name] = own.aligned(name, model.indices, indices)
    return result


def aligned(
    name: str,
    features: tuple[str, ...],
    model: TrainedModel,
    indices: Mapping[str, FeatureIndex],
) -> LinearModel:
    """Return a coordinate's model under another feature index; says what that lacks.

    Parameters
    ----------
    features
        The coordinate's bags in the order that its columns shall have.
    """
    own = model.coordinate(name)
    width, numbers = _new_numbers(own.features, features, model.indices, indices)
    coefficients = own.coefficients
    if isinstance(coefficients, FixedCoefficients):
        stale = int(np.count_nonzero(coefficients.values[numbers < 0]))
        laid_out = coefficients.renumbered(numbers, width)
        result = replace(own, features=features, coefficients=laid_out)
    else:
        renumbered = coefficients.renumbered(numbers)
        stale = coefficients.values.size - renumbered.values.size
        result = replace(own, features=features, coefficients=renumbered)
    if stale:
        text = "initial model: coordinate '%s': skipped %s coefficients of %s features that %s"
        count = f"{np.count_nonzero(numbers < 0):,}"
        log.warning(text, name, f"{stale:,}", count, "the training data lack")
    return result


def _aligned_factors(
    model: FactorizationModel,
    spec: Factorization,
    before: Mapping[str, FeatureIndex],
    after: Mapping[str, FeatureIndex],
) -> FactorizationModel:
    """Return a factorization under another feature index: what foretells factors is renumbered."""
    sides = list(model.sides)
    for position, (side, bags) in enumerate(zip(model.sides, spec.bags_of_sides, strict=True)):
        if bags:
            width, numbers = _new_numbers(side.features, bags, before, after)
            regression = np.zeros((width, side.rank))
            regression[numbers[numbers >= 0]] = side.regression[numbers >= 0]
            sides[position] = replace(side, features=bags, regression=regression)
    return replace(model, sides=(sides[0], sides[1]))


def _new_numbers(
    own: tuple[str, ...],
    features: tuple[str, ...],
    before: Mapping[str, FeatureIndex],
    after: Mapping[str, FeatureIndex],
) -> tuple[int, I64]:
    """Return the new number of columns, and each column's new number; -1 of one that is gone."""
    first, width = {}, 1
    for bag in features:
        first[bag] = width
        width += len(after[bag])
    numbers = [np.zeros(1, np.int64)]
    for bag in own:
        found = before[bag].columns_in(after[bag])
        numbers.append(np.where(found >= 0, found + first[bag], -1))
    return width, np.concatenate(numbers)
