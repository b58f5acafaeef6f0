"""The commands. No logic: each one reads its arguments, calls one function, shows the result."""

from __future__ import annotations

import json
import logging
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text
from typer.core import TyperGroup

from gdmix._version import __version__
from gdmix.errors import ConfigError, GdmixError, ModelError

out = Console(highlight=False, markup=False)
err = Console(stderr=True, highlight=False, markup=False)


_DEBUG = "gdmix.debug"


class _Program(TyperGroup):
    """All commands: what a user can mend ends with one line per finding and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        logger, terminal = logging.getLogger("gdmix"), _Terminal()
        logger.addHandler(terminal)
        try:
            return super().invoke(ctx)
        except GdmixError as error:
            if ctx.meta.get(_DEBUG):
                traceback.print_exception(error)
            for line in str(error).splitlines():
                _print_labelled("error", "bold red", line)
            raise typer.Exit(2) from None
        except KeyboardInterrupt as error:
            what = str(error) or "nothing half-written is left"
            err.print(f"interrupted; {what}", soft_wrap=True)
            raise typer.Exit(130) from None
        except MemoryError:
            _print_labelled("error", "bold red", "out of memory")
            raise typer.Exit(3) from None
        finally:
            logger.removeHandler(terminal)


# Plain help: as readable in a log or an 80-column terminal as anywhere.
_LOOK: dict[str, Any] = {
    "no_args_is_help": True,
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(
    name="gdmix", cls=_Program, help="Train, score and inspect generalized mixed models.", **_LOOK
)
example_app = typer.Typer(help="Prepare an example's data.", **_LOOK)
app.add_typer(example_app, name="example")
convert_app = typer.Typer(help="Convert rows, features and models between formats.", **_LOOK)
app.add_typer(convert_app, name="convert")

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and warnings only.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]
Validate = Annotated[
    str,
    typer.Option("--validate", metavar="MODE", help="What bad rows do: strict, drop or off."),
]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder or a run folder.")]

Description = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="CONFIG",
        help="Coordinates and features of a model of Photon ML or GDMix: a YAML file.",
    ),
]

Join = Annotated[
    list[str] | None,
    typer.Option(
        "--join", metavar="PATH", help="Add the columns of these same rows, by uid; repeatable."
    ),
]


class EngineKind(StrEnum):
    """Where the work is done."""

    local = "local"
    spark = "spark"


def _remember(context: typer.Context, value: bool) -> bool:
    context.meta[_DEBUG] = value
    return value


Master = Annotated[
    str | None,
    typer.Option("--master", metavar="URL", help="Spark's: local[4], spark://HOST:7077, yarn."),
]
Conf = Annotated[
    list[str] | None,
    typer.Option("--conf", metavar="KEY=VALUE", help="A setting of Spark's; repeatable."),
]
Debug = Annotated[
    bool,
    typer.Option("--debug", callback=_remember, help="Show tracebacks and all that Spark says."),
]


class Format(StrEnum):
    """Formats of rows that a command can be asked for."""

    parquet = "parquet"
    tfrecord = "tfrecord"
    avro = "avro"


class Split(StrEnum):
    """What the rows of an example are divided by."""

    rows = "rows"
    users = "users"


class ModelFormat(StrEnum):
    """Formats of models that a command can be asked for."""

    parquet = "parquet"
    avro = "avro"
    photon = "photon"


def main() -> None:
    """Run the program."""
    # A scheduler's request to stop is met like a user's: clean up, say so, leave.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app()


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"gdmix {__version__}")
        raise typer.Exit


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of the run.")],
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one: coordinates.per-user.l2=5."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PATH", help="Run folder, instead of the file's."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace earlier results in the run folder.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an unfinished run, if there is one.")
    ] = False,
    engine: Annotated[
        EngineKind | None, typer.Option("--engine", help="Instead of the file's.")
    ] = None,
    master: Master = None,
    conf: Conf = None,
    debug: Debug = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a model and write its run folder."""
    from gdmix.compat.gdmix_yaml import load_run
    from gdmix.deep.distributed import is_worker
    from gdmix.report import components_table, history_table
    from gdmix.runs import assist, run

    overrides = dict(_key_and_value(text, "--set", "KEY=VALUE") for text in override or [])
    if output is not None:
        overrides["output"] = json.dumps(str(output))
    if engine is not None:
        overrides["engine"] = engine
    spark = _spark_settings(master, conf, debug)
    overrides |= {f"spark.{key}": value for key, value in spark.items()}
    loaded = load_run(config, overrides)
    run_config = loaded.config
    if is_worker():
        assist(run_config)
        return
    for note in () if quiet else loaded.notes:
        _print_labelled("note", "cyan", note)
    steps = run_config.passes * len(run_config.fitted) + (run_config.solver == "joint")
    with _progress("reading rows", steps, quiet or as_json) as show:
        history = run(
            run_config,
            overwrite=overwrite,
            resume=resume,
            on_start=lambda number, name: show(f"pass {number}/{run_config.passes}: {name}", 0),
            on_step=lambda step: show("", 1),
        )
    if as_json:
        _print_json({"output": str(run_config.output), **history.to_dict()})
    elif not quiet:
        out.print(history_table(history, str(config)))
        if history.variance_components:
            out.print(components_table(history))
        out.print(f"run folder: {run_config.output}", soft_wrap=True)


@app.command()
def tune(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="YAML file of the run; `tune` says what.")
    ],
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one: tune.method=random."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", metavar="N", help="Instead of the file's.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PATH", help="Folder. Default: <output>.tune."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew, instead of going on.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Search for the best regularisation weights."""
    from gdmix.compat.gdmix_yaml import load_run
    from gdmix.deep.distributed import world_size
    from gdmix.report import trials_table
    from gdmix.tuning import TuningStopped, tune_run
    from gdmix.tuning.study import BEST, study_folder

    if world_size() > 1:
        raise ConfigError("tune: runs in one process; torchrun is for `gdmix train`")
    overrides = dict(_key_and_value(text, "--set", "KEY=VALUE") for text in override or [])
    if trials is not None:
        overrides["tune.trials"] = str(trials)
    loaded = load_run(config, overrides)
    for note in () if quiet else loaded.notes:
        _print_labelled("note", "cyan", note)
    folder = output or study_folder(loaded.config.output)
    title = str(config)
    with _progress("reading rows", 1, quiet or as_json) as show:
        try:
            tuning = tune_run(
                loaded.config,
                folder=folder,
                overwrite=overwrite,
                on_start=lambda t: show(t.summary, len(t.trials), t.planned),
                on_trial=lambda t: show(t.summary, 1),
            )
        except TuningStopped as stop:
            if not quiet and not as_json:
                out.print(trials_table(stop.tuning, title))
            raise
    if as_json:
        _print_json({"output": str(folder), **tuning.to_dict()})
    elif not quiet:
        out.print(trials_table(tuning, title))
        out.print(f"next: gdmix train {folder / BEST}", soft_wrap=True)


@app.command()
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
        score_rows = partial(score_on_spark, _spark_config(_spark_settings(master, conf, debug)))
    with _progress("scoring", None, quiet or as_json):
        given = dict(_key_and_value(text, "--external", "NAME=PATH") for text in external or [])
        mode, described = _validate_mode(validate), load_description(config) if config else None
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
        _print_json({"output": str(done.path), "rows": done.rows})
    elif not quiet:
        out.print(f"{done.rows:,} rows scored: {done.path}", soft_wrap=True)


@app.command()
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

    mode = _validate_mode(validate)
    with _progress("encoding", None, quiet or as_json):
        done = encode_to_file(model, data, output, coordinate, side, column, join or [], mode)
    if as_json:
        summary = {"output": str(done.path), "rows": done.rows}
        _print_json({**summary, "column": done.column, "dim": done.dim})
    elif not quiet:
        text = f"{done.rows:,} rows with '{done.column}' of {done.dim} numbers: {done.path}"
        out.print(text, soft_wrap=True)


@app.command()
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
        _print_json(metrics)
    else:
        out.print(metrics_table(metrics, ", ".join(scores)))


@app.command()
def inspect(
    model: Model,
    coordinate: Annotated[
        str | None,
        typer.Option("--coordinate", "-c", metavar="NAME", help="Show its coefficients."),
    ] = None,
    entity: Annotated[
        str | None,
        typer.Option("--entity", "-e", metavar="ENTITY", help="Of this entity alone."),
    ] = None,
    top: Annotated[
        int, typer.Option("--top", metavar="N", min=1, help="At most that many coefficients.")
    ] = 20,
    as_json: Json = False,
) -> None:
    """Show a model, or a coordinate's largest coefficients."""
    from gdmix.model.store import read_model
    from gdmix.report import coefficient_table, model_table

    trained = read_model(model)
    if coordinate is None:
        if entity is not None:
            raise ModelError("--entity needs --coordinate: which random effect?")
        if as_json:
            _print_json({n: trained.summary(n) for n in trained.coordinates})
        else:
            out.print(model_table(trained, str(model)))
        return
    table = trained.largest_coefficients(coordinate, entity, top)
    if as_json:
        _print_json(table.to_pylist())
    else:
        of = coordinate if entity is None else f"{coordinate}, entity {entity}"
        out.print(coefficient_table(table, f"{of}: largest coefficients"))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS", help="Run folders.")],
    as_json: Json = False,
) -> None:
    """Show the metrics of several runs side by side."""
    from gdmix.report import comparison_table
    from gdmix.runs import read_history

    names = [folder.resolve().name for folder in runs]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in runs]
    histories = {name: read_history(folder) for name, folder in zip(names, runs, strict=True)}
    if as_json:
        _print_json({name: h.to_dict() for name, h in histories.items()})
    else:
        out.print(comparison_table(histories))


@app.command("features")
def features_(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of a run.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write all of them: a .parquet or .csv file."
        ),
    ] = None,
    weighted: Annotated[
        bool, typer.Option("--weighted", help="Weigh mean and std by row weight.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Describe the features of the training rows."""
    from gdmix.compat.gdmix_yaml import load_run
    from gdmix.data.feature_table import feature_table, write_feature_table
    from gdmix.report import feature_summary_tables

    run_config = load_run(config).config
    with _progress("reading rows", None, quiet or as_json):
        table = feature_table(run_config, weighted)
        if output is not None:
            write_feature_table(table, output)
    if as_json:
        _print_json(table.to_pylist())
    elif not quiet:
        out.print(feature_summary_tables(table, str(config)))
        if output is not None:
            out.print(f"all features: {output}", soft_wrap=True)


@app.command()
def warmup(quiet: Quiet = False) -> None:
    """Compile all kernels now, so that no later run has to."""
    from gdmix.warmup import compile_kernels

    with _progress("compiling kernels", None, quiet):
        seconds = compile_kernels()
    if not quiet:
        out.print(f"kernels ready ({seconds:.1f} s of CPU)")


@convert_app.command()
def rows(
    data: Annotated[
        list[str], typer.Argument(metavar="DATA", help="Rows: files, folders or patterns.")
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="A .parquet, .tfrecord or .avro file."),
    ],
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="NAME", help="Write this one; repeatable. Default: all."),
    ] = None,
    join: Join = None,
    uid: Annotated[
        str, typer.Option("--uid", metavar="NAME", help="Column of row ids, for --join.")
    ] = "uid",
    quiet: Quiet = False,
) -> None:
    """Write rows of any format as Parquet, TFRecord or Avro."""
    from gdmix.convert import convert_rows

    with _progress("converting", None, quiet):
        done = convert_rows(data, output, column or [], join or [], uid)
    if not quiet:
        out.print(f"{done.path}: {done.rows:,} rows", soft_wrap=True)


@convert_app.command()
def features(
    config: Annotated[
        Path,
        typer.Argument(metavar="CONFIG", help="YAML file: data, columns, features, coordinates."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PATH", help="Folder to write.")
    ],
    kind: Annotated[
        Format, typer.Option("--format", help="tfrecord or parquet.")
    ] = Format.tfrecord,
    shared: Annotated[
        bool, typer.Option("--shared", help="One feature list for all coordinates.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Write rows as GDMix has them, features as indices."""
    from gdmix.compat.gdmix_yaml import load_run
    from gdmix.convert import convert_features

    if kind is Format.avro:
        raise ConfigError("--format avro: indices and values are for tfrecord or parquet")
    run_config = load_run(config, {"output": json.dumps(str(output))}).config
    records: Literal["parquet", "tfrecord"]
    records = "parquet" if kind is Format.parquet else "tfrecord"
    with _progress("converting", None, quiet):
        done = convert_features(run_config, output, records, shared)
    for written in () if quiet else done:
        out.print(f"{written.path}: {written.rows:,} rows", soft_wrap=True)


@convert_app.command("model")
def model_(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A model of ours, of Photon ML or of GDMix.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PATH", help="Folder to write.")
    ],
    to: Annotated[
        ModelFormat,
        typer.Option("--to", help="parquet: ours; avro: with GDMix's files; photon: Photon ML's."),
    ] = ModelFormat.parquet,
    config: Description = None,
    cut: Annotated[
        float,
        typer.Option("--cut", metavar="X", min=0, help="Leave out what is not above, for photon."),
    ] = 0.0,
    split_crossed: Annotated[
        list[str] | None,
        typer.Option(
            "--split-crossed",
            metavar="COORDINATE=ENTITY",
            help="Make a fixed effect on features ENTITY_gdmixcross_FEATURE a random effect.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier model there.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Write a model in another format."""
    from gdmix.compat.gdmix_yaml import load_description
    from gdmix.convert import convert_model
    from gdmix.report import model_table

    described = load_description(config) if config else None
    form = "COORDINATE=ENTITY"
    split = dict(_key_and_value(text, "--split-crossed", form) for text in split_crossed or [])
    kinds: dict[ModelFormat, Literal["parquet", "avro", "photon"]]
    kinds = {
        ModelFormat.parquet: "parquet",
        ModelFormat.avro: "avro",
        ModelFormat.photon: "photon",
    }
    with _progress("converting", None, quiet):
        done = convert_model(
            model,
            output,
            kinds[to],
            described,
            cut=cut,
            split_crossed=split,
            overwrite=overwrite,
        )
    if not quiet:
        out.print(model_table(done, str(output)))


@example_app.command()
def movielens(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Where to write.")],
    source: Annotated[
        Path | None,
        typer.Option("--source", metavar="ZIP", help="A local ml-100k.zip, instead of fetching."),
    ] = None,
    kind: Annotated[
        Format,
        typer.Option("--format", help="Also the folders that LinkedIn's GDMix makes of it."),
    ] = Format.parquet,
    split: Annotated[
        Split,
        typer.Option("--split", help="Of GDMix's rows; or of users: those of validation are new."),
    ] = Split.rows,
    quiet: Quiet = False,
) -> None:
    """Fetch MovieLens-100k and prepare rows and configurations."""
    from gdmix.data.movielens import prepare, write_configurations
    from gdmix.data.movielens_gdmix import write_gdmix_folders

    with _progress("fetching MovieLens-100k", None, quiet):
        by: Literal["rows", "users"] = "users" if split is Split.users else "rows"
        files = prepare(directory, source=source, by=by)
        configurations = write_configurations(directory)
        if kind is not Format.parquet:
            records: Literal["avro", "tfrecord"]
            records = "avro" if kind is Format.avro else "tfrecord"
            configurations.insert(0, write_gdmix_folders(files, records))
    if not quiet:
        out.print(f"{files.train}: {files.train_rows:,} rows", soft_wrap=True)
        out.print(f"{files.validation}: {files.validation_rows:,} rows", soft_wrap=True)
        out.print(f"next: gdmix train {configurations[0]}", soft_wrap=True)


class _Terminal(logging.Handler):
    """Warnings to stderr, and to a person why it takes so long; a progress bar stays whole."""

    def filter(self, record: logging.LogRecord) -> bool:
        waiting = record.name == "gdmix.kernels" and err.is_terminal
        return record.levelno >= logging.WARNING or waiting

    def emit(self, record: logging.LogRecord) -> None:
        label = "note" if record.levelno < logging.WARNING else record.levelname.lower()
        _print_labelled(label, "yellow", record.getMessage())


def _print_labelled(label: str, style: str, text: str) -> None:
    err.print(Text.assemble((f"{label}: ", style), text), soft_wrap=True)


@contextmanager
def _progress(text: str, steps: int | None, silent: bool) -> Iterator[Any]:
    """Show what goes on; yields ``show(text, steps done, of how many)``. Vanishes when done."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        *([BarColumn()] if steps else []),
        TimeElapsedColumn(),
    )
    # Where stderr is a file, the bar would leave an empty line and nothing else.
    disable = silent or not err.is_terminal
    with Progress(*columns, console=err, transient=True, disable=disable) as progress:
        task = progress.add_task(text, total=steps)

        def show(description: str, done: int, total: int | None = None) -> None:
            progress.update(task, advance=done, total=total)
            if description:
                progress.update(task, description=description)

        with _shown_beside(progress, task):
            yield show


@contextmanager
def _shown_beside(progress: Progress, task: TaskID) -> Iterator[None]:
    """Show how far the training of a network is, behind what it is a part of."""
    logger, handler = logging.getLogger("gdmix.training"), logging.Handler()

    def emit(record: logging.LogRecord) -> None:
        before, _, _ = progress.tasks[task].description.partition(": step ")
        progress.update(task, description=f"{before}: {record.getMessage()}")

    handler.emit = emit  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _spark_settings(master: str | None, conf: list[str] | None, debug: bool) -> dict[str, str]:
    """Return keys and YAML values of what `spark` of a configuration holds."""
    settings = {} if master is None else {"master": json.dumps(master)}
    if debug:
        settings["log_level"] = "INFO"
    given = dict(_key_and_value(text, "--conf", "KEY=VALUE") for text in conf or [])
    return settings | {f"conf.{key}": json.dumps(value) for key, value in given.items()}


def _spark_config(settings: dict[str, str]) -> Any:
    from gdmix.config import SparkConfig
    from gdmix.config.base import config_errors
    from gdmix.config.yaml_files import override

    tree: dict[str, Any] = {}
    for key, value in settings.items():
        override(tree, f"spark.{key}", value)
    with config_errors("spark."):
        return SparkConfig.model_validate(tree.get("spark", {}))


def _key_and_value(text: str, option: str, form: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{option} {text}: expected {form}")
    return key, value


def _validate_mode(text: str) -> Any:
    if text not in ("strict", "drop", "off"):
        raise ConfigError(f"--validate {text}: is none of strict, drop, off")
    return text


def _print_json(value: Any) -> None:
    from gdmix.data.write import to_json

    print(to_json(value))
