"""A normalisation within the penalty is a fit to normalised features, mapped back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gdmix import FixedEffect, MixedModel, RandomEffect

N, ENTITIES = 300, 5
NAMES = ["a", "b", "c"]


def make_rows(task: str) -> tuple[dict[str, Any], np.ndarray]:
    rng = np.random.default_rng(4)
    user = rng.integers(0, ENTITIES, N)
    x = np.array([1.0, 20.0, 0.2]) * (rng.normal(size=(N, 3)) + [0.0, 1.0, -2.0])
    x[rng.random((N, 3)) < [0.6, 0.3, 0.0]] = 0.0  # sparse, but every user has every feature
    x = x.astype(np.float32).astype(float)
    z = 0.3 + x @ [0.5, -0.02, 1.0] + 0.5 * rng.normal(size=ENTITIES)[user]
    if task == "linear_regression":
        y = z + rng.normal(size=N)
    elif task == "logistic_regression":
        y = (rng.random(N) < 1 / (1 + np.exp(-z))).astype(float)
    else:
        y = rng.poisson(np.exp(z)).astype(float)
    return {"user": user, "response": y, "offset": 0.1 * rng.normal(size=N)}, x


def with_features(rows: dict[str, Any], x: np.ndarray, dense: bool) -> dict[str, Any]:
    if dense:
        flat = pa.array(x.astype(np.float32).ravel())
        return {**rows, "vector": pa.FixedSizeListArray.from_arrays(flat, 3)}
    return {**rows, **dict(zip(NAMES, x.T, strict=True))}


def coefficients(spec: Any, rows: dict[str, Any], task: str, dense: bool) -> np.ndarray:
    """(models, 4)."""
    features = {"f": ["vector"] if dense else NAMES}
    model = MixedModel([spec], features=features, task=task).fit(rows)
    return model.model_.linear["own"].coefficients.values.reshape(-1, 4)


@pytest.mark.parametrize("task", ["linear_regression", "logistic_regression", "poisson_regression"])
@pytest.mark.parametrize("random", [False, True], ids=["fixed", "random"])
@pytest.mark.parametrize("normalization", ["standardize", "scale_by_std", "scale_by_max"])
@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
@pytest.mark.parametrize("l1", [0.0, 3.0])
def test_is_a_fit_to_normalised_features(
    task: str, random: bool, normalization: str, dense: bool, l1: float
) -> None:
    rows, x = make_rows(task)
    options: dict[str, Any] = {
        "features": "f",
        "l2": 4.0,
        "l1": l1,
        "intercept_l2": 2.5,
        "tolerance": 1e-11,
    }
    spec: Any = FixedEffect("own", **options)
    if random:
        spec = RandomEffect("own", entity="user", **options)
    scale = np.abs(x).max(axis=0) if normalization == "scale_by_max" else x.std(axis=0, ddof=1)
    centre = x.mean(axis=0) if normalization == "standardize" else np.zeros(3)
    theirs = coefficients(spec, with_features(rows, (x - centre) / scale, True), task, True)
    slopes = theirs[:, 1:] / scale
    expected = np.column_stack([theirs[:, 0] - slopes @ centre, slopes])
    normalized = spec.model_copy(update={"normalization": normalization})
    found = coefficients(normalized, with_features(rows, x, dense), task, dense)
    np.testing.assert_allclose(found * [1, *scale], expected * [1, *scale], rtol=2e-5, atol=2e-6)
    if l1:
        np.testing.assert_array_equal(found[:, 1:] == 0.0, slopes == 0.0)
    else:
        other = coefficients(spec, with_features(rows, x, dense), task, dense)
        assert np.abs((found - other) * [1, *scale]).max() > 1e-3
