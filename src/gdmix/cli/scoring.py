"""What a model says of rows, and how good it is."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from gdmix.cli.options import (
    Conf,
    Debug,
    Description,
    EngineKind,
    Join,
    Json,
    Master,
    Model,
    Quiet,
    Validate,
    key_and_value,
    spark_config,
    spark_settings,
    validate_mode,
)
from gdmix.cli.terminal import out, print_json, progress


def score(
    model: Model,
    data: Annotated[
        list[str], typer.Argument(metavar="DATA", help="Rows: files, folders or patterns.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="PATH", help="A .parquet, .csv or .avro file, or a folder."
        ),
    ],
    components: Annotated[
        bool, typer.Option("--components", help="Add a column per coordinate.")
    ] = False,
    external: Annotated[
        list[str] | None,
        typer.Option(
            "--external",
            metavar="NAME=PATH",
            help="These rows' scores of a coordinate that has them from files; repeatable.",
        ),
    ] = None,
    join: Join = None,
    config: Description = None,
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle", help="Open estimators saved as pickles: trust the model's writer."
        ),
    ] = False,
    std_error: Annotated[
        bool, typer.Option("--std-error", help="Add the standard error of the total score.")
    ] = False,
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample",
            metavar="SEED",
            help="Add the prediction of a draw of all coefficients (Thompson sampling).",
        ),
    ] = None,
    validate: Validate = "strict",
    engine: Annotated[
        EngineKind, typer.Option("--engine", help="Where rows are scored.")
    ] = EngineKind.local,
    master: Master = None,
    conf: Conf = None,
    debug: Debug = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score rows; entities that training did not see add 0."""
    from gdmix.compat.gdmix_yaml import load_description
    from gdmix.scoring import score_on_spark, score_to_file

    score_rows = score_to_file
    if engine is EngineKind.spark:
        score_rows = partial(score_on_spark, spark_config(spark_settings(master, conf, debug)))
    with progress("scoring", None, quiet or as_json):
        given = dict(key_and_value(text, "--external", "NAME=PATH") for text in external or [])
        mode, described = validate_mode(validate), load_description(config) if config else None
        done = score_rows(
            model,
            data,
            output,
            components,
            mode,
            given,
            described,
            join or [],
            allow_pickle,
            std_error,
            sample,
        )
    if as_json:
        print_json({"output": str(done.path), "rows": done.rows})
    elif not quiet:
        out.print(f"{done.rows:,} rows scored: {done.path}", soft_wrap=True)


def encode(
    model: Model,
    data: Annotated[
        list[str], typer.Argument(metavar="DATA", help="Rows: files, folders or patterns.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PATH", help="A .parquet file.")
    ],
    coordinate: Annotated[
        str, typer.Option("--coordinate", "-c", metavar="NAME", help="A deep coordinate.")
    ],
    side: Annotated[
        str, typer.Option("--side", metavar="SIDE", help="The side whose vectors are written.")
    ] = "document",
    column: Annotated[
        str | None,
        typer.Option("--column", metavar="NAME", help="Of the vectors. Default: NAME_SIDE."),
    ] = None,
    join: Join = None,
    validate: Validate = "strict",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write rows with a column of a deep coordinate's vectors."""
    from gdmix.encoding import encode_to_file

    mode = validate_mode(validate)
    with progress("encoding", None, quiet or as_json):
        done = encode_to_file(model, data, output, coordinate, side, column, join or [], mode)
    if as_json:
        summary = {"output": str(done.path), "rows": done.rows}
        print_json({**summary, "column": done.column, "dim": done.dim})
    elif not quiet:
        text = f"{done.rows:,} rows with '{done.column}' of {done.dim} numbers: {done.path}"
        out.print(text, soft_wrap=True)


def evaluate(
    scores: Annotated[
        list[str], typer.Argument(metavar="SCORES", help="Score files, folders or patterns.")
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            "-m",
            metavar="METRIC",
            help="Such as auc or ndcg@10:user_id; repeatable. Default: those of the task.",
        ),
    ] = None,
    score_column: Annotated[
        str, typer.Option("--score", metavar="COLUMN", help="Column of the linear predictor.")
    ] = "total_score",
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="TASK", help="Default: the one the file was written for."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compute metrics of score files."""
    from gdmix.report import metrics_table
    from gdmix.scoring import evaluate_files

    metrics = evaluate_files(scores, metric or [], score_column, task)
    if as_json:
        print_json(metrics)
    else:
        out.print(metrics_table(metrics, ", ".join(scores)))
