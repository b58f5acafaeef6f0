"""The commands. No logic: each one reads its arguments, calls one function, shows the result."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from gdmix._version import __version__
from gdmix.errors import ConfigError, GdmixError, ModelError

app = typer.Typer(
    name="gdmix",
    help="Train, score and inspect generalized mixed models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
example_app = typer.Typer(help="Prepare an example's data.", no_args_is_help=True)
app.add_typer(example_app, name="example")

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and warnings only.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]
Validate = Annotated[str, typer.Option("--validate", help="What bad rows do: strict, drop or off.")]
Model = Annotated[Path, typer.Argument(help="A model folder or a run folder.")]


def main() -> None:
    """Run the program: exit code 2 and one line per finding for what a user can mend."""
    try:
        app()
    except GdmixError as error:
        for line in str(error).splitlines():
            err.print(Text.assemble(("error: ", "bold red"), line), soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("interrupted; nothing was written")
        sys.exit(130)
    except MemoryError:
        err.print("error: out of memory", style="bold red")
        sys.exit(3)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    logger = logging.getLogger("gdmix")
    logger.addHandler(_Terminal(logging.WARNING))
    if version:
        print(f"gdmix {__version__}")
        raise typer.Exit


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, by dotted key."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Run folder, instead of the file's.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace earlier results in the run folder.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a model and write its run folder."""
    from gdmix.config import RunConfig
    from gdmix.report import history_table
    from gdmix.runs import run

    overrides = dict(_key_and_value(text) for text in override or [])
    if output is not None:
        overrides["output"] = json.dumps(str(output))
    run_config = RunConfig.from_yaml(config, overrides)
    steps = run_config.passes * len(run_config.coordinates)
    with _progress("reading rows", steps, quiet or as_json) as show:
        history = run(
            run_config,
            overwrite=overwrite,
            on_start=lambda number, name: show(f"pass {number}/{run_config.passes}: {name}", 0),
            on_step=lambda step: show("", 1),
        )
    if as_json:
        _print_json({"output": str(run_config.output), **history.to_dict()})
    elif not quiet:
        out.print(history_table(history, str(config)))
        out.print(f"run folder: {run_config.output}", soft_wrap=True)


@app.command()
def score(
    model: Model,
    data: Annotated[list[str], typer.Argument(help="Rows: files, folders or patterns.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A .parquet or .csv file, or a folder.")
    ],
    components: Annotated[
        bool, typer.Option("--components", help="Add a column per coordinate.")
    ] = False,
    validate: Validate = "strict",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score rows; entities that training did not see add 0."""
    from gdmix.scoring import score_to_file

    with _progress("scoring", None, quiet or as_json):
        done = score_to_file(model, data, output, components, _validate_mode(validate))
    if as_json:
        _print_json({"output": str(done.path), "rows": done.rows})
    elif not quiet:
        out.print(f"{done.rows:,} rows scored: {done.path}", soft_wrap=True)


@app.command()
def evaluate(
    scores: Annotated[list[str], typer.Argument(help="Score files: files, folders, patterns.")],
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", "-m", help="Such as auc, logloss, ndcg@10:user_id; repeatable."),
    ] = None,
    score_column: Annotated[
        str, typer.Option("--score", help="Column of the linear predictor.")
    ] = "total_score",
    task: Annotated[
        str | None, typer.Option("--task", help="Default: the one the file was written for.")
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
    coordinate: Annotated[str | None, typer.Option("--coordinate", "-c")] = None,
    entity: Annotated[
        str | None, typer.Option("--entity", "-e", help="One entity of a random effect.")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="How many coefficients.")] = 20,
    as_json: Json = False,
) -> None:
    """Show what a model consists of, or a coordinate's largest coefficients."""
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
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    as_json: Json = False,
) -> None:
    """Show the metrics of several runs side by side."""
    from gdmix.report import comparison_table
    from gdmix.runs import read_history

    names = [folder.name for folder in runs]
    distinct = len(set(names)) == len(runs)
    histories = {folder.name if distinct else str(folder): read_history(folder) for folder in runs}
    if as_json:
        _print_json({name: h.to_dict() for name, h in histories.items()})
    else:
        out.print(comparison_table(histories))


@app.command()
def warmup(quiet: Quiet = False) -> None:
    """Compile all kernels now, so that no later run on this machine has to."""
    from gdmix.warmup import compile_kernels

    with _progress("compiling kernels", None, quiet):
        seconds = compile_kernels()
    if not quiet:
        out.print(f"kernels ready ({seconds:.1f} s of CPU)")


@example_app.command()
def movielens(
    directory: Annotated[Path, typer.Argument(help="Where to write.")],
    source: Annotated[
        Path | None, typer.Option("--source", help="A local ml-100k.zip, instead of fetching.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Fetch MovieLens-100k, check it, and prepare rows and configurations to train on."""
    from gdmix.data.movielens import prepare, write_configurations

    with _progress("fetching MovieLens-100k", None, quiet):
        files = prepare(directory, source=source)
        configurations = write_configurations(directory)
    if not quiet:
        out.print(f"{files.train}: {files.train_rows:,} rows", soft_wrap=True)
        out.print(f"{files.validation}: {files.validation_rows:,} rows", soft_wrap=True)
        out.print(f"next: gdmix train {configurations[0]}", soft_wrap=True)


class _Terminal(logging.Handler):
    """Warnings to stderr, without disturbing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        err.print(
            Text.assemble((f"{record.levelname.lower()}: ", "yellow"), record.getMessage()),
            soft_wrap=True,
        )


@contextmanager
def _progress(text: str, steps: int | None, silent: bool) -> Iterator[Any]:
    """Show what goes on; yields ``show(text, steps done)``. Vanishes when done."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        *([BarColumn()] if steps else []),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=silent) as progress:
        task = progress.add_task(text, total=steps)

        def show(description: str, done: int) -> None:
            progress.update(task, advance=done)
            if description:
                progress.update(task, description=description)

        yield show


def _key_and_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {text}: expected KEY=VALUE")
    return key, value


def _validate_mode(text: str) -> Any:
    if text not in ("strict", "drop", "off"):
        raise ConfigError(f"--validate {text}: is none of strict, drop, off")
    return text


def _print_json(value: Any) -> None:
    from gdmix.data.write import to_json

    print(to_json(value))
