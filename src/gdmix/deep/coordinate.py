"""The deep fixed effect: a network that is fitted beside all other coordinates' scores."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from copy import copy, deepcopy
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from gdmix import memory
from gdmix.config import DeepFixedEffect, FeatureBag, Task, parse_metric
from gdmix.coordinates.base import FitReport, Scores
from gdmix.coordinates.fixed_effect import best_level
from gdmix.data.dataset import Dataset
from gdmix.data.feature_index import FeatureIndex
from gdmix.data.keys import Keys
from gdmix.deep.distributed import team, together
from gdmix.deep.findings import InputFindings
from gdmix.deep.inputs import EncodedRows, InputEncoding, warn_of_constants
from gdmix.deep.losses import LOSSES, RANKING, check_relevance
from gdmix.deep.model import DeepModel, Scaled, score_rows
from gdmix.deep.network import build_network, network_class
from gdmix.deep.trainer import fit_network
from gdmix.evaluation.evaluate import evaluate
from gdmix.glm import losses
from gdmix.glm.status import FitStatus
from gdmix.model.mixed_model import LOSSES as TASK_LOSSES

F64 = NDArray[np.float64]

log = logging.getLogger("gdmix")

_LARGE_BATCH = 1024

_POINTWISE: Mapping[int, str] = {
    losses.LOGISTIC: "logistic",
    losses.SQUARED: "squared",
    losses.POISSON: "poisson",
}


class DeepCoordinate:
    """A deep fixed effect bound to its rows.

    Parameters
    ----------
    name
        Of the coordinate.
    spec
        What to fit.
    train, validation
        The rows.
    indices, bags
        The feature index of each bag, and its configuration.
    task
        Of the run.
    seed
        Of the run.
    threads
        Number of threads.
    metric
        By which validation rows judge networks, where the training asks for it.
    checkpoint
        File of the state of an unfinished training; None: nothing is kept.
    """

    def __init__(
        self,
        name: str,
        spec: DeepFixedEffect,
        train: Dataset,
        validation: Dataset | None,
        indices: Mapping[str, FeatureIndex],
        bags: Mapping[str, FeatureBag],
        task: Task,
        seed: int,
        threads: int,
        metric: str,
        checkpoint: Path | None = None,
    ) -> None:
        self._name, self._spec, self._task = name, spec, task
        self._train, self._validation = train, validation
        self._indices, self._bags = indices, bags
        self._seed = seed if spec.training.seed is None else spec.training.seed
        self._threads, self._metric, self._checkpoint = threads, metric, checkpoint
        self._validation_offset: Callable[[], F64] | None = None
        # Rows as the network is given them, and the encoding that they were made by.
        self._encoded: tuple[InputEncoding, EncodedRows, EncodedRows | None] | None = None
        if spec.loss in RANKING:
            check_relevance(spec.loss, train.response)

    def judged_beside(self, validation_offset: Callable[[], F64]) -> DeepCoordinate:
        """Return the coordinate that knows what all else adds to validation rows."""
        other = copy(self)
        other._validation_offset = validation_offset
        return other

    def fit(self, offset: F64, warm_start: DeepModel | None) -> tuple[DeepModel, FitReport]:
        """Train a network on the training rows, from the earlier weights if there are any."""
        offset, before = together(self._name, (offset, warm_start))
        spec = self._spec
        training = spec.training if before is None else spec.refit.applied_to(spec.training)
        if before is not None and spec.refit.steps == 0:
            return before, FitReport(1, {FitStatus.CONVERGED: 1}, 0.0, float("nan"))
        begin = self._new_model(offset) if before is None else before
        train, validation = self._encode(begin.encoding)
        network = Scaled(deepcopy(begin.network), begin.level, begin.scale)
        fits = 0 if before is None else before.fits
        judge = None
        if training.judge_on_validation and validation is not None:
            judge = self._judge(validation)
        report = fit_network(
            network,
            train.with_offset(offset),
            LOSSES[self._loss],
            training,
            seed=self._seed + fits,  # rows come in another order in a later pass
            validation=judge,
            higher_is_better=parse_metric(self._metric).higher_is_better,
            checkpoint=self._checkpoint,
            identity={"network": _identity(spec)},
            threads=_threads(spec, self._threads),
        )
        model = DeepModel(
            spec, begin.encoding, network.network.eval(), begin.level, begin.scale, fits + 1
        )
        ended = FitReport(1, {FitStatus.CONVERGED: 1}, float(report.steps), report.gradient_norm)
        return model, ended

    @property
    def _loss(self) -> str:
        """Name of the loss in `deep.losses`."""
        if self._spec.loss in RANKING:
            return self._spec.loss
        return _POINTWISE[TASK_LOSSES[self._task]]

    def _new_model(self, offset: F64) -> DeepModel:
        spec, rows = self._spec, self._train
        if self._encoded is not None:
            encoding = self._encoded[0]
        else:
            found = InputFindings.of(spec, rows, self._bags, team())
            encoding = InputEncoding.of(spec, found, self._bags)
            warn_of_constants(rows.label, encoding, self._indices)
        network = build_network(spec, encoding.sizes, encoding.tokenizer, self._seed)
        level, scale = self._units(offset)
        return DeepModel(spec, encoding, network, level, scale, fits=0)

    def _units(self, offset: F64) -> tuple[float, float]:
        """Return the intercept that alone fits best, and the spread of what it leaves."""
        if self._spec.loss in RANKING:
            return 0.0, 1.0
        rows, loss, holders = self._train, TASK_LOSSES[self._task], team().holders
        level = best_level(rows, offset, loss, self._threads, holders)
        if loss != losses.SQUARED:
            return level, 1.0
        left = memory.copy(rows.response)
        left -= offset
        left -= level
        squares, weight = holders.sum(np.array([left**2 @ rows.weight, rows.weight.sum()]))
        spread = math.sqrt(squares / weight)
        return level, spread if spread > 0 else 1.0

    def _encode(self, encoding: InputEncoding) -> tuple[EncodedRows, EncodedRows | None]:
        """Return training and validation rows under an encoding; they are encoded once."""
        if self._encoded is None or self._encoded[0] is not encoding:
            train = encoding.encode(self._train, self._spec.group)
            held = None if self._validation is None else encoding.encode(self._validation)
            self._encoded = encoding, train, held
        return self._encoded[1], self._encoded[2]

    def _judge(self, encoded: EncodedRows) -> Callable[[nn.Module], float]:
        rows, task, metric = encoded.rows, self._task, self._metric
        column = parse_metric(metric).column
        groups = {} if column is None else {column: rows.keys[column].codes}
        offset = rows.offset if self._validation_offset is None else self._validation_offset()

        def judge(network: nn.Module) -> float:
            total = score_rows(network, encoded) + offset
            values = evaluate([metric], total, rows.response, rows.weight, task=task, groups=groups)
            return values[metric]

        return judge

    def start(self, model: DeepModel) -> tuple[DeepModel, DeepModel | None]:
        """Take an earlier model, with vectors for ids that only the new rows have."""
        return model.extended(self._train.keys, self._name), None

    def unknown_ids(self, model: DeepModel) -> dict[str, Keys]:
        """Return the ids of the training rows that a model does not know."""
        return model.encoding.unknown(self._train.keys)

    def score(self, model: DeepModel) -> Scores:
        """Score training and validation rows."""
        train, validation = (
            None if rows is None else model.score_encoded(rows, self._threads)
            for rows in self._encode(model.encoding)
        )
        assert train is not None
        return Scores(train, validation)

    def penalty(self, model: DeepModel) -> float:
        """Return 0: weight decay and an early end are no part of the objective."""
        return 0.0


def check_deep(spec: DeepFixedEffect) -> None:
    """Refuse what can be known to fail before any row is read.

    Raises
    ------
    ConfigError
        If a network of the user's own can't be imported.
    """
    if spec.model is not None:
        network_class(spec.model, f"coordinates.{spec.name}.model")


def _threads(spec: DeepFixedEffect, threads: int) -> int:
    """Return how many threads to train with: small steps are slower on several."""
    is_large = spec.training.batch_size >= _LARGE_BATCH or spec.encoder.type == "hf"
    return threads if is_large else 1


def _identity(spec: DeepFixedEffect) -> dict[str, object]:
    return spec.model_dump(mode="json", exclude={"training", "refit", "locked"})
