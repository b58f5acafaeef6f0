"""An earlier model as the start of a run: whether it fits, and under the run's feature index."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gdmix.config import CoordinateSpec, ExternalScores, ModelConfig, RandomEffect
from gdmix.data.feature_index import FeatureIndex
from gdmix.errors import ConfigError, did_you_mean
from gdmix.model.coefficients import FixedCoefficients
from gdmix.model.mixed_model import ExternalModel, LinearModel, TrainedModel

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
    if model.task != config.task:
        findings.append(f"initial_model: its task is {model.task}, that of this run {config.task}")
    known = ", ".join(model.coordinates)
    for name, spec in config.coordinates.items():
        if name in model.coordinates:
            findings += [
                f"coordinates.{name}: {what} is {here}, in initial_model it is {there}"
                for what, here, there in _differences(spec, model.coordinates[name])
            ]
        elif name in config.linear and name not in config.fitted:
            hint = did_you_mean(name, model.coordinates)
            findings.append(
                f"coordinates.{name}: is locked, but initial_model has no '{name}'{hint}; "
                f"it has: {known}"
            )
    if not set(model.coordinates) & set(config.coordinates):
        findings.append(f"initial_model: has none of this run's coordinates; it has: {known}")
    if findings:
        raise ConfigError("\n".join(findings))
    for name in model.coordinates:
        if name not in config.coordinates:
            log.warning("initial model: coordinate '%s' is not one of this run: left out", name)


def _differences(
    spec: CoordinateSpec, model: LinearModel | ExternalModel
) -> Iterator[tuple[str, str, str]]:
    """Yield what differs, here and in the model."""
    if spec.type != model.type:
        yield "type", spec.type, model.type
    if spec.type != model.type or isinstance(spec, ExternalScores):
        return
    assert isinstance(model, LinearModel)
    if isinstance(spec, RandomEffect) and spec.key != model.entity:
        yield "entity", spec.key, str(model.entity)
    if set(spec.features) != set(model.features):
        yield "features", _listed(spec.features), _listed(model.features)
    if spec.intercept != model.intercept:
        yield "intercept", str(spec.intercept).lower(), str(model.intercept).lower()


def _listed(bags: tuple[str, ...]) -> str:
    return f"[{', '.join(bags)}]"


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
    width, numbers = _new_numbers(own, features, model.indices, indices)
    coefficients = own.coefficients
    if isinstance(coefficients, FixedCoefficients):
        values = np.zeros(width)
        values[numbers[numbers >= 0]] = coefficients.values[numbers >= 0]
        stale = int(np.count_nonzero(coefficients.values[numbers < 0]))
        result = replace(own, features=features, coefficients=FixedCoefficients(values))
    else:
        renumbered = coefficients.renumbered(numbers)
        stale = coefficients.values.size - renumbered.values.size
        result = replace(own, features=features, coefficients=renumbered)
    if stale:
        text = "initial model: coordinate '%s': skipped %s coefficients of %s features that %s"
        count = f"{np.count_nonzero(numbers < 0):,}"
        log.warning(text, name, f"{stale:,}", count, "the training data lack")
    return result


def _new_numbers(
    model: LinearModel,
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
    for bag in model.features:
        found = after[bag].lookup_pairs(before[bag].names, before[bag].terms)
        numbers.append(np.where(found >= 0, found + first[bag], -1))
    return width, np.concatenate(numbers)
