"""Variances and Hessians of the coefficients of a trained model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.config import LinearSpec
from gdmix.errors import ConfigError
from gdmix.glm.losses import SQUARED
from gdmix.model.linear import LinearModel

F64 = NDArray[np.float64]
CurvatureKind = Literal["simple", "full", "hessian"]

MAX_SIDE = 20_000


class UncertainCoordinate(Protocol):
    """A coordinate that knows the curvature of its objective."""

    def curvature(
        self, model: Any, offset: Any, kinds: Collection[CurvatureKind]
    ) -> tuple[Any, float]:
        """Return the model with what is asked for, not scaled; and its degrees of freedom."""


def kinds_of(spec: LinearSpec) -> set[CurvatureKind]:
    """Return what a spec asks for."""
    kinds: set[CurvatureKind] = set()
    if spec.variance != "none":
        kinds.add(spec.variance)
    return kinds | ({"hessian"} if spec.save_hessian else set())


def needs_matrices(kinds: Collection[CurvatureKind]) -> bool:
    """Whether more than the diagonal of a Hessian is needed."""
    return "full" in kinds or "hessian" in kinds


def check_room_for_matrices(
    name: str, side: int, entries: int, kinds: Collection[CurvatureKind]
) -> None:
    """Refuse matrices that would not fit.

    Parameters
    ----------
    side
        Of the largest.
    entries
        Of all that are held at once.

    Raises
    ------
    ConfigError
        It says how much memory they would take.
    """
    limit = memory.limit_bytes()
    size = 8 * max(entries, side * side)
    if side <= MAX_SIDE and (limit is None or size <= 0.5 * limit):
        return
    key = "variance: full" if "full" in kinds else "save_hessian"
    raise ConfigError(
        f"coordinates.{name}: {key} would take {size / 1e9:,.1f} GB for matrices of up to "
        f"{side:,} x {side:,}; use variance: simple"
    )


def with_uncertainty(
    coordinates: Mapping[str, UncertainCoordinate],
    specs: Mapping[str, LinearSpec],
    models: Mapping[str, Any],
    offsets: Mapping[str, Any],
    loss: int,
    residual: tuple[float, int],
    scaled: Callable[[str, Any, float], Any] = lambda name, model, factor: _scaled(model, factor),
) -> dict[str, Any]:
    """Return the models with the variances and Hessians that their specs ask for.

    Of the linear task variances are multiplied by the residual variance, the sum of squared
    residuals over the rows less the degrees of freedom of all coordinates (for one fixed effect
    without a penalty: over n - p). These come from diagonals alone where `simple` variances are
    asked for, or nothing is and the whole matrices would be too large.

    Parameters
    ----------
    offsets
        (n,) score of all else, of each coordinate.
    residual
        The loss of the training rows, and their number.
    scaled
        Multiplies the variances of a coordinate's model by a factor.
    """
    wanted = {name: kinds_of(spec) for name, spec in specs.items()}
    if not any(wanted.values()):
        return dict(models)
    result, freedom = {}, 0.0
    for name, model in models.items():
        if not wanted[name] and loss != SQUARED:
            result[name] = model
            continue
        coordinate, offset = coordinates[name], offsets[name]
        try:
            certain, own = coordinate.curvature(model, offset, wanted[name] or {"full"})
        except ConfigError:
            if wanted[name]:
                raise
            certain, own = coordinate.curvature(model, offset, {"simple"})
        freedom += own
        result[name] = certain if wanted[name] else model
    if loss != SQUARED:
        return result
    dispersion = 2.0 * residual[0] / max(residual[1] - freedom, 1.0)
    return {
        name: scaled(name, model, dispersion) if wanted[name] else model
        for name, model in result.items()
    }


def _scaled(model: LinearModel, dispersion: float) -> LinearModel:
    coefficients = model.coefficients
    assert coefficients.variances is not None
    scaled = replace(coefficients, variances=coefficients.variances * dispersion)
    return replace(model, coefficients=scaled, dispersion=dispersion)
