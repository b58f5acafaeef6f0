"""Which weights to try next.

A proposal depends on the seed and the finished trials alone: a search that was killed goes on as
if it had not been.
"""

from __future__ import annotations

import itertools
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdmix.config import Candidates, TuneConfig
from gdmix.errors import ConfigError
from gdmix.tuning.gaussian_process import propose
from gdmix.tuning.space import Space, Values, candidate, position

F64 = NDArray[np.float64]

_FIRST_TRIALS = 6  # quasi-random, before there is something to learn from
_NO_OPTUNA = "method 'tpe' needs Optuna: pip install 'gdmix[tune]'; or use method 'bayesian'"


@dataclass(frozen=True)
class Outcome:
    """A finished trial as a method sees it: weights and a number that is best when large."""

    values: Values
    merit: float


class Proposals:
    """Weights to try, one after the other.

    Parameters
    ----------
    space
        What is searched.
    settings
        Method, number of trials, seed.

    Attributes
    ----------
    trials
        How many there will be.

    Raises
    ------
    ConfigError
        If Optuna is needed and missing, or the grid has more points than there are trials.
    """

    def __init__(self, space: Space, settings: TuneConfig) -> None:
        self._space, self._seed, self._method = space, settings.seed, settings.method
        self.trials = settings.trials
        self._discrete: Space | None = None
        if settings.method == "grid":
            self._discrete = _grid(space, settings.trials)
        elif all(candidates.values is not None for candidates in space.values()):
            self._discrete = space
        if self._discrete is not None:
            self.trials = min(self.trials, _size(self._discrete))
        if settings.method == "tpe":
            _import_optuna()

    def next(self, finished: Sequence[Outcome], starts: Sequence[Values] = ()) -> Values:
        """Return the weights of the next trial; there is one as long as `trials` says.

        Parameters
        ----------
        starts
            What to try first; a grid is what it is.
        """
        tried = [outcome.values for outcome in finished]
        if self._method == "grid":
            return self._untried(tried)
        number = len(finished)
        if number < len(starts):
            return starts[number]
        known = [outcome for outcome in finished if math.isfinite(outcome.merit)]
        if self._method == "random" or number < _FIRST_TRIALS or len(known) < 2:
            point = halton(number, len(self._space), self._seed)
        else:
            points = np.array([_point(self._space, outcome.values) for outcome in known])
            merits = np.array([outcome.merit for outcome in known])
            learn = _by_density if self._method == "tpe" else _by_improvement
            point = learn(points, merits, number, self._seed)
        pairs = zip(self._space.items(), point, strict=True)
        proposal = {key: candidate(c, u) for (key, c), u in pairs}
        return self._untried(tried) if self._discrete and proposal in tried else proposal

    def _untried(self, tried: Sequence[Values]) -> Values:
        assert self._discrete is not None
        return next(point for point in _points(self._discrete) if point not in tried)


def _grid(space: Space, trials: int) -> Space:
    """Return a space of values alone: each range gets as many as fit into so many trials.

    Raises
    ------
    ConfigError
        If even two of each range are too many.
    """
    ranges = [key for key, candidates in space.items() if candidates.values is None]
    listed = math.prod(len(c.values) for c in space.values() if c.values is not None)
    each = 2
    while ranges and listed * (each + 1) ** len(ranges) <= trials:
        each += 1
    size = listed * each ** len(ranges)
    if size > trials:
        two = f", with two values of each range alone ({len(ranges)} of them)" if ranges else ""
        raise ConfigError(
            f"tune: the grid has {size:,} points{two}; tune.trials is {trials}: "
            "raise it, name fewer settings or values in tune.space, or use another method"
        )
    ends = np.linspace(0.0, 1.0, each)
    return {
        key: Candidates(values=tuple(candidate(c, u) for u in ends)) if key in ranges else c
        for key, c in space.items()
    }


def _points(space: Space) -> Iterator[Values]:
    values = [candidates.values or () for candidates in space.values()]
    for point in itertools.product(*values):
        yield dict(zip(space, point, strict=True))


def _size(space: Space) -> int:
    return math.prod(len(candidates.values or ()) for candidates in space.values())


def halton(number: int, dimensions: int, seed: int | None) -> F64:
    """Return a point of a low-discrepancy sequence in the unit cube, (dimensions,).

    Radical inverses of `number` in the first primes, each digit permuted at random (A. B. Owen,
    A randomized Halton algorithm in R, arXiv:1706.02808); without a seed they are as they are.
    """
    point = np.zeros(dimensions)
    for d, base in enumerate(itertools.islice(_primes(), dimensions)):
        random = None if seed is None else np.random.default_rng([seed, d])
        rest, unit = number, 1.0 / base
        while unit > 2.0**-53:
            rest, digit = divmod(rest, base)
            point[d] += unit * (digit if random is None else random.permutation(base)[digit])
            unit /= base
    return np.minimum(point, np.nextafter(1.0, 0.0))


def _primes() -> Iterator[int]:
    return (n for n in itertools.count(2) if all(n % k for k in range(2, math.isqrt(n) + 1)))


def _point(space: Space, values: Values) -> list[float]:
    return [position(candidates, values[key]) for key, candidates in space.items()]


def _by_improvement(points: F64, merits: F64, number: int, seed: int) -> F64:
    return propose(points, merits, np.random.default_rng([seed, number]))


def _by_density(points: F64, merits: F64, number: int, seed: int) -> F64:
    """Propose where good points are dense and others are not: the tree of Parzen estimators.

    J. Bergstra et al., Algorithms for hyper-parameter optimization, NIPS 2011, as Optuna has it.
    """
    optuna = _import_optuna()
    names = [str(d) for d in range(points.shape[1])]
    with _silence():
        distributions = {name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in names}
        sampler = optuna.samplers.TPESampler(
            multivariate=True, n_startup_trials=0, seed=(seed + number) % 2**32
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.add_trials(
            [
                optuna.trial.create_trial(
                    params=dict(zip(names, map(float, point), strict=True)),
                    distributions=distributions,
                    value=float(merit),
                )
                for point, merit in zip(points, merits, strict=True)
            ]
        )
        chosen = study.ask(distributions).params
    return np.array([chosen[name] for name in names])


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ConfigError(f"tune: {_NO_OPTUNA}") from None
    return optuna


@contextmanager
def _silence() -> Iterator[None]:
    """Let Optuna neither log that a study begins nor warn that a sampler is new."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
