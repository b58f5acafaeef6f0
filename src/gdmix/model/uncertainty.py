"""How uncertain the scores of a trained model are, and models drawn from its posterior.

The coefficients of coordinates count as independent of each other: each coordinate's variances
are those given all others. Within a coordinate, and within an entity, they are correlated as the
saved Hessian says; where there is none, not at all.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix import memory
from gdmix.data.dataset import Dataset
from gdmix.data.keys import hash_texts
from gdmix.errors import ModelError
from gdmix.glm.posterior import (
    NO_TRIANGLES,
    Triangles,
    covariance,
    draw,
    score_variances_fixed,
    score_variances_random,
)
from gdmix.model.coefficients import (
    FixedCoefficients,
    RandomCoefficients,
    entity_numbers,
    positions,
)
from gdmix.model.linear import LinearModel
from gdmix.model.mixed_model import TrainedModel

F64 = NDArray[np.float64]

log = logging.getLogger("gdmix")


def standard_errors(model: TrainedModel, rows: Dataset, threads: int = 1) -> F64:
    """Return the standard error of each row's linear predictor, (n,).

    It is the root of the sum over coordinates of x' C x, with C the covariance of a coordinate's
    coefficients. Coordinates without coefficients count as known exactly, with a warning.

    Raises
    ------
    ModelError
        If a coordinate has coefficients, but neither variances nor Hessians.
    """
    _check(model)
    total = memory.zeros(rows.n_rows)
    for coordinate in model.linear.values():
        total += _score_variances(coordinate, rows, threads)
    np.sqrt(total, out=total)
    return total


def drawn(model: TrainedModel, rows: Dataset, seed: int) -> TrainedModel:
    """Return the model with a draw of its coefficients, of the entities that rows have.

    What is drawn depends on the model and the seed, not on the rows. Coefficients without a
    variance, and coordinates without coefficients, are as they are, the latter with a warning.

    Raises
    ------
    ModelError
        If a coordinate has coefficients, but neither variances nor Hessians.
    """
    _check(model)
    coordinates = {
        name: _drawn(name, c, rows, seed) if isinstance(c, LinearModel) else c
        for name, c in model.coordinates.items()
    }
    return replace(model, coordinates=coordinates)


def _check(model: TrainedModel) -> None:
    linear = model.linear
    unknown = [name for name, c in linear.items() if c.coefficients.variances is None]
    if unknown:
        names = ", ".join(f"'{name}'" for name in unknown)
        what = "coordinate" if len(unknown) == 1 else "coordinates"
        raise ModelError(
            f"{what} {names}: no variances; train with `variance: full` or `save_hessian: true`"
        )
    others = [name for name in model.coordinates if name not in linear]
    if not linear:
        raise ModelError(f"no coordinate has coefficients with variances: {', '.join(others)}")
    if others:
        names = ", ".join(f"'{name}'" for name in others)
        log.warning("uncertainty is of coefficients; taken as known exactly: %s", names)


def _score_variances(model: LinearModel, rows: Dataset, threads: int) -> F64:
    design, coefficients = rows.design(model.features), model.coefficients
    assert coefficients.variances is not None
    if isinstance(coefficients, FixedCoefficients):
        matrix = np.empty((0, 0))
        if coefficients.hessian is not None:
            width = coefficients.values.size
            matrix = covariance(coefficients.hessian, width, model.dispersion)
        return score_variances_fixed(
            design, model.intercept, coefficients.variances, matrix, threads
        )
    assert model.entity is not None
    return score_variances_random(
        design,
        entity_numbers(rows.keys[model.entity], coefficients.entities, model.entity),
        model.intercept,
        (coefficients.indptr, coefficients.columns, coefficients.variances),
        _triangles(coefficients),
        model.dispersion,
        threads,
    )


def _drawn(name: str, model: LinearModel, rows: Dataset, seed: int) -> LinearModel:
    key = hash_texts(pa.array([f"draw {seed} of {name}"], pa.large_string()))[0]
    coefficients = model.coefficients
    assert coefficients.variances is not None
    if isinstance(coefficients, FixedCoefficients):
        size = coefficients.values.size
        triangles = NO_TRIANGLES
        if coefficients.hessian is not None:
            triangles = np.array([0, coefficients.hessian.size]), coefficients.hessian
        values = draw(
            key,
            np.zeros(1, np.int64),
            np.array([0, size]),
            coefficients.values,
            coefficients.variances,
            triangles,
            model.dispersion,
        )
        if not model.intercept:
            values[0] = 0.0
        return replace(model, coefficients=FixedCoefficients(values))
    assert model.entity is not None
    found = positions(rows.keys[model.entity], coefficients.entities, model.entity)
    chosen = np.unique(found[found >= 0])
    known = (coefficients.indptr, coefficients.values, coefficients.variances)
    values = draw(key, chosen, *known, _triangles(coefficients), model.dispersion)
    own = RandomCoefficients(
        coefficients.entities, coefficients.indptr, coefficients.columns, coefficients.values
    ).take(chosen)
    if not model.intercept:
        values[own.columns == 0] = 0.0
    return replace(model, coefficients=replace(own, values=values))


def _triangles(coefficients: RandomCoefficients) -> Triangles:
    if coefficients.hessian_ptr is None or coefficients.hessians is None:
        return NO_TRIANGLES
    return coefficients.hessian_ptr, coefficients.hessians
