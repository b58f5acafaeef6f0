"""What a model, a run or the rows' features look like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gdmix.cli.options import Json, Model, Quiet
from gdmix.cli.terminal import out, print_json, progress
from gdmix.errors import ModelError


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
            print_json({n: trained.summary(n) for n in trained.coordinates})
        else:
            out.print(model_table(trained, str(model)))
        return
    table = trained.largest_coefficients(coordinate, entity, top)
    if as_json:
        print_json(table.to_pylist())
    else:
        of = coordinate if entity is None else f"{coordinate}, entity {entity}"
        out.print(coefficient_table(table, f"{of}: largest coefficients"))


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
        print_json({name: h.to_dict() for name, h in histories.items()})
    else:
        out.print(comparison_table(histories))


def features(
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
    with progress("reading rows", None, quiet or as_json):
        table = feature_table(run_config, weighted)
        if output is not None:
            write_feature_table(table, output)
    if as_json:
        print_json(table.to_pylist())
    elif not quiet:
        out.print(feature_summary_tables(table, str(config)))
        if output is not None:
            out.print(f"all features: {output}", soft_wrap=True)
