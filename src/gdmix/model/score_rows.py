"""Rows scored by a trained model, as the tables of a score file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from gdmix.data.dataset import Dataset
from gdmix.data.read import Source
from gdmix.data.score_files import score_tables, without
from gdmix.glm.losses import inverse_link
from gdmix.model.mixed_model import TrainedModel
from gdmix.model.uncertainty import drawn, standard_errors


@dataclass(frozen=True)
class ScoreColumns:
    """What a score file says besides ``prediction`` and ``total_score``.

    Attributes
    ----------
    components
        A column ``score:<coordinate>`` per coordinate.
    std_error
        A column ``std_error``, of the linear predictor.
    sample
        A column ``sample``: the mean under the draw of coefficients of that seed.
    """

    components: bool = False
    std_error: bool = False
    sample: int | None = None


def score_rows(
    model: TrainedModel,
    rows: Dataset,
    wanted: ScoreColumns,
    threads: int = 1,
    external: Mapping[str, Source] | None = None,
) -> Iterator[pa.Table]:
    """Score rows; yield the tables of a score file.

    Parameters
    ----------
    external
        Scores of these rows, of each coordinate that has them from files.

    Raises
    ------
    ModelError
        As `TrainedModel.components`, or if variances are wanted that the model has not.
    """
    parts = model.components(rows, threads, external)
    total = sum(parts.values(), rows.offset)
    columns = {f"score:{name}": s for name, s in parts.items()} if wanted.components else {}
    columns["prediction"] = inverse_link(model.loss, total)
    if wanted.std_error:
        columns["std_error"] = standard_errors(model, rows, threads)
    if wanted.sample is not None:
        linear = drawn(model, rows, wanted.sample).linear
        parts |= {name: coordinate.score(rows, threads) for name, coordinate in linear.items()}
        columns["sample"] = inverse_link(model.loss, sum(parts.values(), rows.offset))
    rows = replace(rows, keys=without(rows.keys, model.text_keys))
    yield from score_tables(rows, model.task, total, columns)
