"""Score rows with a saved model into files, and compute the metrics of such files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from gdmix.config import DEFAULT_METRICS, ModelConfig, SparkConfig, Task, ValidateMode, parse_metric
from gdmix.data.dataset import load_rows
from gdmix.data.join import join_rows
from gdmix.data.read import open_rows
from gdmix.data.score_files import read_scores, write_scores
from gdmix.errors import ConfigError, did_you_mean
from gdmix.evaluation.evaluate import evaluate
from gdmix.glm.threads import available_threads
from gdmix.model.any_model import read_any_model
from gdmix.model.score_rows import ScoreColumns, score_rows


@dataclass(frozen=True)
class Scored:
    """Where the scores went, and how many rows they are."""

    path: Path
    rows: int


def score_to_file(
    model_folder: Path,
    data: Sequence[str],
    output: Path,
    components: bool = False,
    validate: ValidateMode = "strict",
    external: Mapping[str, str] | None = None,
    description: ModelConfig | None = None,
    joined: Sequence[str] = (),
    allow_pickle: bool = False,
    std_error: bool = False,
    sample: int | None = None,
) -> Scored:
    """Score rows and write ``uid``, ``prediction``, ``total_score`` and what is known of them.

    Parameters
    ----------
    components
        Also write a column ``score:<coordinate>`` per coordinate.
    external
        Path of these rows' scores, of each coordinate that has them from files.
    description
        What the models apply to, if they are Photon ML's or GDMix's.
    joined
        Further sources of the same rows, whose columns are found by uid.
    allow_pickle
        Whether estimators that were saved as pickles may be opened: it runs their code.
    std_error
        Also write a column ``std_error``, of the linear predictor.
    sample
        Also write a column ``sample``: the mean under the draw of coefficients of that seed.

    Raises
    ------
    GdmixError
        If the model, the rows or the output can't be used.
    """
    source, *others = [open_rows(list(data)), *(open_rows(path) for path in joined)]
    types = {f.name: f.type for rows in (*others, source) for f in rows.schema}
    model = read_any_model(model_folder, description, types)
    model = model.with_pickles_trusted() if allow_pickle else model
    if others:
        source = join_rows(source, [(rows, "") for rows in others], model.columns.column("uid"))
    threads = available_threads()
    rows = load_rows(
        source, model.row_schema(), model.indices, model.task, validate, threads=threads
    )
    wanted = ScoreColumns(components, std_error, sample)
    path = write_scores(score_rows(model, rows, wanted, threads, external), output)
    return Scored(path, rows.n_rows)


def score_on_spark(spark: SparkConfig, *arguments: Any) -> Scored:
    """Score rows on a cluster; arguments as of `score_to_file`.

    Raises
    ------
    GdmixError
        Also if there is no cluster.
    """
    from gdmix.engines.spark.scoring import score_to_files
    from gdmix.engines.spark.session import opened

    with opened(spark, "gdmix score") as session:
        return Scored(*score_to_files(session, *arguments))


def evaluate_files(
    paths: Sequence[str], metrics: Sequence[str], score_column: str, task: str | None
) -> dict[str, float]:
    """Compute metrics of score files.

    Parameters
    ----------
    metrics
        Default: those of the task.
    score_column
        Column of the linear predictor.
    task
        Default: the one that the files name.

    Raises
    ------
    GdmixError
        If a metric, a column or the task is unknown.
    """
    known: tuple[Task, ...] = get_args(Task)
    given = next((t for t in known if t == task), None)
    if task is not None and given is None:
        hint = did_you_mean(task, known)
        raise ConfigError(f"--task {task}: unknown{hint}; known: {', '.join(known)}")
    columns = (parse_metric(name).column for name in metrics)
    rows = read_scores(paths, [c for c in columns if c is not None], score_column)
    chosen = given or rows.task
    if chosen is None:
        raise ConfigError(f"{paths[0]}: does not name its task; pass --task")
    return evaluate(
        metrics or DEFAULT_METRICS[chosen],
        rows.score,
        rows.response,
        rows.weight,
        task=chosen,
        groups=rows.groups,
    )
