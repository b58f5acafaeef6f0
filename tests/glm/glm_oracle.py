"""Slow, plain numpy answers to what the kernels compute, and random problems to ask them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gdmix.glm.entities import EntityBlock
from gdmix.glm.losses import LOGISTIC, POISSON, SQUARED
from gdmix.glm.matrix import CsrMatrix

F64 = NDArray[np.float64]
Rng = np.random.Generator

LOSSES = {"logistic": LOGISTIC, "squared": SQUARED, "poisson": POISSON}


@dataclass
class Problem:
    """One entity: features (n, d - 1) without the intercept's column, and its rows' data."""

    features: F64
    response: F64
    weight: F64
    offset: F64


# --- the formula -------------------------------------------------------------------------


def derivatives(loss: int, z: F64, y: F64) -> tuple[F64, F64, F64]:
    """Value, first and second derivative of each row's loss, each to full relative accuracy."""
    if loss == SQUARED:
        return 0.5 * (z - y) ** 2, z - y, np.ones_like(z)
    if loss == POISSON:
        rate = np.exp(z)
        return rate - y * z, rate - y, rate
    t = np.exp(-np.abs(z))
    mean, complement = np.where(z > 0, 1.0, t) / (1.0 + t), np.where(z > 0, t, 1.0) / (1.0 + t)
    value = np.maximum(z, 0.0) - y * z + np.log1p(t)
    return value, (1.0 - y) * mean - y * complement, mean * complement


def penalties(d: int, l2: float, intercept_l2: float) -> F64:
    penalty = np.full(d, l2)
    penalty[0] = intercept_l2
    return penalty


def with_intercept(features: F64, intercept: bool) -> F64:
    return np.column_stack([np.full(len(features), float(intercept)), features])


def objective(problem: Problem, theta: F64, loss: int, penalty: F64, intercept: bool) -> float:
    x = with_intercept(problem.features, intercept)
    value = derivatives(loss, problem.offset + x @ theta, problem.response)[0]
    return float(problem.weight @ value + 0.5 * theta @ (penalty * theta))


def gradient(problem: Problem, theta: F64, loss: int, penalty: F64, intercept: bool) -> F64:
    x = with_intercept(problem.features, intercept)
    d1 = derivatives(loss, problem.offset + x @ theta, problem.response)[1]
    return x.T @ (problem.weight * d1) + penalty * theta


def one_class(problem: Problem, loss: int) -> bool:
    """Whether an unpenalised intercept runs off to infinity."""
    labels = set(problem.response[problem.weight > 0.0].tolist())
    return loss != SQUARED and (labels == {0.0} or (loss == LOGISTIC and labels == {1.0}))


def solve(problem: Problem, loss: int, penalty: F64, intercept: bool = True) -> F64:
    """Newton's method with an exact line search, until the gradient falls no further."""
    x = with_intercept(problem.features, intercept)
    y, w, offset = problem.response, problem.weight, problem.offset
    theta = np.zeros(x.shape[1])
    fixed = np.zeros(x.shape[1], bool) if intercept else np.arange(x.shape[1]) == 0
    best, best_norm = theta, np.inf
    stale = 0
    for _ in range(2000):
        _, d1, d2 = derivatives(loss, offset + x @ theta, y)
        slope = x.T @ (w * d1) + penalty * theta
        norm = float(np.linalg.norm(slope))
        stale = 0 if norm < 0.5 * best_norm else stale + 1
        if norm < best_norm:
            best, best_norm = theta, norm
        if norm == 0.0 or (stale > 3 and norm <= 1e-12 * (1.0 + w @ np.abs(y))) or stale > 200:
            break
        hessian = (x.T * (w * d2)) @ x + np.diag(penalty + fixed)
        try:
            step = np.linalg.solve(hessian, -slope)
        except np.linalg.LinAlgError:
            step = np.linalg.lstsq(hessian, -slope, rcond=None)[0]
        theta = theta + _step_length(problem, x, theta, step, loss, penalty) * step
    return best


def _step_length(problem: Problem, x: F64, theta: F64, step: F64, loss: int, penalty: F64) -> float:
    """The t in (0, 1] where the objective along `step` is least: its derivative's sign change."""
    move = x @ step
    z = problem.offset + x @ theta

    def rising(t: float) -> bool:
        d1 = derivatives(loss, np.minimum(z + t * move, 600.0), problem.response)[1]
        slope = (problem.weight * d1) @ move + (penalty * (theta + t * step)) @ step
        return bool(slope > 0.0)

    if not rising(1.0 + 1e-3):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if rising(middle) else (middle, high)
    # Near the optimum the sign is noise, and the full step is right to second order.
    return 1.0 if high > 0.9 else high


# --- many problems at once ----------------------------------------------------------------


def csr(features: F64, rng: Rng | None = None) -> CsrMatrix:
    """The non-zeros of a dense matrix; with `rng`, each row's in random order."""
    rows, columns = np.nonzero(features)
    if rng is not None:
        order = np.lexsort((rng.random(rows.size), rows))
        rows, columns = rows[order], columns[order]
    indptr = np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=len(features)))))
    values = features[rows, columns].astype(np.float32)
    return CsrMatrix(indptr.astype(np.int64), columns.astype(np.uint32), values, features.shape[1])


def block_of(problems: Sequence[Problem], rng: Rng | None = None) -> tuple[EntityBlock, F64]:
    """The problems as a block, and their offsets in its row order."""
    designs = [csr(p.features, rng) for p in problems]
    nnz = np.cumsum([0, *(m.nnz for m in designs)])
    block = EntityBlock(
        row_ptr=np.cumsum([0, *(m.n_rows for m in designs)]).astype(np.int64),
        coefficient_ptr=np.cumsum([0, *(m.n_columns + 1 for m in designs)]).astype(np.int64),
        indptr=np.concatenate(
            [[0], *(m.indptr[1:] + s for m, s in zip(designs, nnz, strict=False))]
        ),
        indices=np.concatenate([m.indices for m in designs]),
        values=np.concatenate([m.values for m in designs]),
        response=np.concatenate([p.response for p in problems]),
        weight=np.concatenate([p.weight for p in problems]),
    )
    return block, np.concatenate([p.offset for p in problems])


def block_gradients(
    block: EntityBlock,
    offset: F64,
    coefficients: F64,
    *,
    loss: int,
    l2: float,
    intercept_l2: float,
    intercept: bool = True,
) -> tuple[F64, F64]:
    """Per entity, the gradient's norm at `coefficients` and its rounding error there."""
    sizes = np.diff(block.row_ptr)
    entity = np.repeat(np.arange(block.n_entities), sizes)
    row = np.repeat(np.arange(block.n_rows), np.diff(block.indptr))
    first = block.coefficient_ptr[:-1]
    place = first[entity[row]] + 1 + block.indices
    products = block.values * coefficients[place]
    constant = coefficients[first][entity] * intercept
    z = offset + constant + np.bincount(row, products, block.n_rows)
    size = np.abs(offset) + np.abs(constant) + np.bincount(row, np.abs(products), block.n_rows)
    _, d1, d2 = derivatives(loss, z, block.response)
    d1, d2 = block.weight * d1, block.weight * d2

    owner = np.repeat(np.arange(block.n_entities), np.diff(block.coefficient_ptr))
    penalty = np.full(coefficients.size, l2)
    penalty[first] = intercept_l2
    slope = penalty * coefficients + np.bincount(place, block.values * d1[row], coefficients.size)
    slope[first] += intercept * np.bincount(entity, d1, block.n_entities)
    norm = np.sqrt(np.bincount(owner, slope**2, block.n_entities))

    width = intercept + np.bincount(row, np.abs(block.values), block.n_rows)
    noise = np.bincount(entity, width * (np.abs(d1) + d2 * (1 + size)), block.n_entities)
    noise += np.bincount(owner, penalty * np.abs(coefficients), block.n_entities)
    return norm, 16 * np.finfo(float).eps * noise


# --- random problems ------------------------------------------------------------------------


def draw_response(rng: Rng, loss: int, z: F64) -> F64:
    if loss == LOGISTIC:
        return (rng.random(z.size) < 1 / (1 + np.exp(-z))).astype(float)
    if loss == SQUARED:
        return z + rng.normal(size=z.size)
    return rng.poisson(np.exp(np.clip(z, -5, 5))).astype(float)


def problem(
    rng: Rng, loss: int, n: int, d: int, *, density: float = 0.5, offset_sd: float = 0.5
) -> Problem:
    """A problem of `n` rows and `d` features with coefficients of moderate size."""
    x = rng.normal(size=(n, d)) * (rng.random((n, d)) < density)
    x = x.astype(np.float32).astype(float)
    offset = offset_sd * rng.normal(size=n)
    z = np.minimum(offset, 2.0) + x @ (rng.normal(size=d) / (1 + 0.3 * d**0.5)) + 0.5 * rng.normal()
    return Problem(x, draw_response(rng, loss, z), rng.gamma(4.0, 0.25, size=n), offset)


def _rows(rng: Rng, low: int = 2, high: int = 40) -> int:
    return int(rng.integers(low, high))


def _usual(rng: Rng, loss: int) -> Problem:
    return problem(rng, loss, _rows(rng), _rows(rng, 1, 12))


def _few_rows(rng: Rng, loss: int) -> Problem:
    return problem(rng, loss, _rows(rng, 1, 12), _rows(rng, 15, 40))


def _one_row(rng: Rng, loss: int) -> Problem:
    return problem(rng, loss, 1, _rows(rng, 1, 6), density=0.9)


def _no_rows(rng: Rng, loss: int) -> Problem:
    return problem(rng, loss, 0, _rows(rng, 1, 6))


def _many_rows(rng: Rng, loss: int) -> Problem:
    return problem(rng, loss, _rows(rng, 300, 600), _rows(rng, 1, 4))


def _between(rng: Rng, loss: int) -> Problem:
    return problem(rng, loss, _rows(rng, 33, 80), _rows(rng, 8, 27))


def _many_features(rng: Rng, loss: int) -> Problem:
    return problem(rng, loss, _rows(rng, 33, 80), _rows(rng, 30, 120), density=0.1)


def _separable(rng: Rng, loss: int) -> Problem:
    p = problem(rng, loss, _rows(rng), _rows(rng, 1, 6))
    high = p.features[:, 0] > 0
    p.response = np.where(high, 3.0 if loss != LOGISTIC else 1.0, 0.0)
    return p


def _one_class(rng: Rng, loss: int) -> Problem:
    p = problem(rng, loss, _rows(rng), _rows(rng, 1, 6))
    p.response[:] = rng.integers(2)
    return p


def _zero_rows(rng: Rng, loss: int) -> Problem:
    p = problem(rng, loss, _rows(rng), _rows(rng, 1, 6))
    p.features[:] = 0.0
    return p


def _no_features(rng: Rng, loss: int) -> Problem:
    return problem(rng, loss, _rows(rng), 0)


def _duplicated(rng: Rng, loss: int) -> Problem:
    p = problem(rng, loss, _rows(rng), _rows(rng, 1, 6))
    p.features = np.hstack([p.features, p.features, 2 * p.features[:, :1]])
    return p


def _constant_feature(rng: Rng, loss: int) -> Problem:
    p = problem(rng, loss, _rows(rng), _rows(rng, 1, 6))
    p.features[:, 0] = np.float32(0.998)
    return p


def _some_zero_weights(rng: Rng, loss: int) -> Problem:
    p = problem(rng, loss, _rows(rng), _rows(rng, 1, 6))
    p.weight[rng.random(p.weight.size) < 0.5] = 0.0
    return p


def _all_zero_weights(rng: Rng, loss: int) -> Problem:
    p = problem(rng, loss, _rows(rng), _rows(rng, 1, 6))
    p.weight[:] = 0.0
    return p


def _large_offsets(rng: Rng, loss: int) -> Problem:
    return problem(rng, loss, _rows(rng), _rows(rng, 1, 6), offset_sd=2.0 if loss == POISSON else 8)


KINDS: dict[str, Callable[[Rng, int], Problem]] = {
    "usual": _usual,
    "few rows": _few_rows,
    "one row": _one_row,
    "no rows": _no_rows,
    "many rows": _many_rows,
    "between": _between,
    "many features": _many_features,
    "separable": _separable,
    "one class": _one_class,
    "zero rows": _zero_rows,
    "no features": _no_features,
    "duplicated": _duplicated,
    "constant feature": _constant_feature,
    "some zero weights": _some_zero_weights,
    "all zero weights": _all_zero_weights,
    "large offsets": _large_offsets,
}


def stress_problem(rng: Rng, loss: int) -> Problem:
    """A problem that starts saturated: wild offsets and feature sizes, any size and labels."""
    kind = rng.integers(4)
    n, d = 1 if kind == 0 else _rows(rng, 1, 50), _rows(rng, 0, 40)
    sd = 3.0 if loss == POISSON else 40.0
    p = problem(rng, loss, n, d, density=rng.choice([0.1, 0.5, 1.0]), offset_sd=sd)
    p.features = (p.features * rng.choice([0.01, 1, 1, 1, 100])).astype(np.float32).astype(float)
    if loss == LOGISTIC:
        p.response = rng.integers(0, 2, n).astype(float)
    elif loss == SQUARED:
        p.response = p.offset + sd * rng.normal(size=n)
    if kind == 1:
        p.response[:] = rng.integers(2)
    return p
