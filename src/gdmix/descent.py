"""Block coordinate descent: one coordinate at a time, the scores of all others as offset.

The joint objective is convex for linear coordinates, so every step lowers it and passes until
convergence reach its one optimum. This loop exists once, for every engine.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from gdmix.config import JOINT
from gdmix.coordinates.base import Coordinate, FitReport, ScoreTable
from gdmix.glm.status import FitStatus
from gdmix.model.mixed_model import CoordinateModel

log = logging.getLogger("gdmix")

Recentre = Callable[[Mapping[str, CoordinateModel]], dict[str, CoordinateModel]]
FitJointly = Callable[[Mapping[str, CoordinateModel]], tuple[dict[str, CoordinateModel], FitReport]]


@dataclass(frozen=True)
class Step:
    """One coordinate fitted in one pass.

    Attributes
    ----------
    pass_number
        From 1.
    coordinate
        Its name; `JOINT` for the step that fits all of them at once.
    objective
        The joint objective after the step: weighted loss plus all penalties.
    report
        How the fit ended.
    metrics
        Metrics of the total score after the step.
    seconds
        Wall time of fit and scoring.
    """

    pass_number: int
    coordinate: str
    objective: float
    report: FitReport
    metrics: Mapping[str, float]
    seconds: float


@dataclass
class Descent:
    """What `descend` returns.

    Attributes
    ----------
    models
        The selected model of each coordinate.
    history
        All steps.
    selected
        Position in the history of the step after which `models` were taken.
    converged
        Whether the convergence test ended it; None without a test.
    """

    models: dict[str, CoordinateModel] = field(default_factory=dict)
    history: list[Step] = field(default_factory=list)
    selected: int = -1
    converged: bool | None = None


@dataclass(frozen=True)
class Schedule:
    """How long descent goes on and what it keeps.

    Attributes
    ----------
    passes
        Rounds over all coordinates, at most.
    tolerance
        Stop when a pass changes the joint objective by less than this share of it.
    select
        The model after the last step, or the best by the first metric.
    higher_is_better
        Of the first metric.
    """

    passes: int
    tolerance: float | None = None
    select: Literal["last", "best"] = "last"
    higher_is_better: bool = True


def descend(
    coordinates: Mapping[str, Coordinate],
    scores: ScoreTable,
    schedule: Schedule,
    recentre: Recentre | None = None,
    fit_jointly: FitJointly | None = None,
    on_start: Callable[[int, str], None] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Descent:
    """Train all coordinates in turn, pass after pass.

    Parameters
    ----------
    coordinates
        In the order of a pass.
    scores
        Filled as coordinates are fitted.
    recentre
        Called between passes: replaces models by others with the same total training scores
        and a lower penalty.
    fit_jointly
        Called after the passes: fits all coordinates at once, from where they are.
    on_start, on_step
        Called before (pass number, coordinate) and after each step.
    """
    models: dict[str, CoordinateModel] = {}
    result = Descent(converged=None if schedule.tolerance is None else False)

    def replace(new: Mapping[str, CoordinateModel]) -> None:
        nonlocal models
        for name, model in new.items():
            if model is not models.get(name):
                scores.put(name, coordinates[name].score(model))
        models = {**models, **new}

    def step(
        number: int, name: str, fit: Callable[[], tuple[dict[str, CoordinateModel], FitReport]]
    ) -> Step:
        if on_start is not None:
            on_start(number, name)
        started = time.perf_counter()
        new, report = fit()
        replace(new)
        seconds = time.perf_counter() - started
        penalty = sum(coordinates[n].penalty(m) for n, m in models.items())
        done = Step(number, name, scores.loss() + penalty, report, scores.evaluate(), seconds)
        result.history.append(done)
        _log_step(done)
        if schedule.select == "last" or (
            len(models) == len(coordinates) and _is_better(result, schedule)
        ):
            result.models, result.selected = models, len(result.history) - 1
        if on_step is not None:
            on_step(done)
        return done

    previous = float("inf")
    for number in range(1, schedule.passes + 1):
        if number > 1 and recentre is not None:
            replace(recentre(models))
        for name in coordinates:
            last = step(number, name, partial(_fit_one, coordinates, scores, models, name))
        if schedule.tolerance is not None:
            result.converged = abs(previous - last.objective) <= schedule.tolerance * abs(
                last.objective
            )
            if result.converged:
                break
        previous = last.objective
    if fit_jointly is not None:
        last = step(number + 1, JOINT, partial(fit_jointly, models))
        result.converged = set(last.report.statuses) == {FitStatus.CONVERGED}
    elif result.converged is False:
        log.warning("not converged to %g after %d passes", schedule.tolerance, schedule.passes)
    return result


def _fit_one(
    coordinates: Mapping[str, Coordinate],
    scores: ScoreTable,
    models: Mapping[str, CoordinateModel],
    name: str,
) -> tuple[dict[str, CoordinateModel], FitReport]:
    model, report = coordinates[name].fit(scores.total_without(name), models.get(name))
    return {name: model}, report


def _is_better(result: Descent, schedule: Schedule) -> bool:
    """Whether the last step beats the selected one by the first metric."""
    if result.selected < 0:
        return True
    new, old = (
        next(iter(step.metrics.values()), float("nan"))
        for step in (result.history[-1], result.history[result.selected])
    )
    better = new > old if schedule.higher_is_better else new < old
    return better or old != old  # a NaN never beats a number


def _log_step(step: Step) -> None:
    metrics = ", ".join(f"{name} {value:.6f}" for name, value in step.metrics.items())
    log.info(
        "pass %d, %s: %s, objective %.6f, gradient norm %.2e, %s, %.2f s",
        step.pass_number,
        step.coordinate,
        describe(step.report),
        step.objective,
        step.report.gradient_norm,
        metrics,
        step.seconds,
    )
    trouble = {s: n for s, n in step.report.statuses.items() if s in _TROUBLE}
    if trouble:
        text = ", ".join(f"{n:,} {s.name.lower()}" for s, n in trouble.items())
        log.warning("pass %d, %s: not fitted well: %s", step.pass_number, step.coordinate, text)


_TROUBLE = {FitStatus.MAX_ITERATIONS, FitStatus.STALLED, FitStatus.NOT_FINITE}


def describe(report: FitReport) -> str:
    """Return how many models a fit has and how they ended, in words."""
    noun = "model" if report.models == 1 else "models"
    ended = ", ".join(f"{n:,} {s.name.lower()}" for s, n in report.statuses.items())
    if set(report.statuses) <= {FitStatus.CONVERGED}:
        return f"{report.models:,} {noun}"
    return f"{report.models:,} {noun} ({ended})"
