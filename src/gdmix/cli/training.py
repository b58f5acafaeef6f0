"""Training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gdmix.cli.options import (
    Conf,
    Debug,
    EngineKind,
    Json,
    Master,
    Quiet,
    key_and_value,
    spark_settings,
)
from gdmix.cli.terminal import out, print_json, print_labelled, progress
from gdmix.errors import ConfigError


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

    overrides = dict(key_and_value(text, "--set", "KEY=VALUE") for text in override or [])
    if output is not None:
        overrides["output"] = json.dumps(str(output))
    if engine is not None:
        overrides["engine"] = engine
    spark = spark_settings(master, conf, debug)
    overrides |= {f"spark.{key}": value for key, value in spark.items()}
    loaded = load_run(config, overrides)
    run_config = loaded.config
    if is_worker():
        assist(run_config)
        return
    for note in () if quiet else loaded.notes:
        print_labelled("note", "cyan", note)
    steps = run_config.passes * len(run_config.fitted) + (run_config.solver == "joint")
    with progress("reading rows", steps, quiet or as_json) as show:
        history = run(
            run_config,
            overwrite=overwrite,
            resume=resume,
            on_start=lambda number, name: show(f"pass {number}/{run_config.passes}: {name}", 0),
            on_step=lambda step: show("", 1),
        )
    if as_json:
        print_json({"output": str(run_config.output), **history.to_dict()})
    elif not quiet:
        out.print(history_table(history, str(config)))
        if history.variance_components:
            out.print(components_table(history))
        out.print(f"run folder: {run_config.output}", soft_wrap=True)


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
    overrides = dict(key_and_value(text, "--set", "KEY=VALUE") for text in override or [])
    if trials is not None:
        overrides["tune.trials"] = str(trials)
    loaded = load_run(config, overrides)
    for note in () if quiet else loaded.notes:
        print_labelled("note", "cyan", note)
    folder = output or study_folder(loaded.config.output)
    title = str(config)
    with progress("reading rows", 1, quiet or as_json) as show:
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
        print_json({"output": str(folder), **tuning.to_dict()})
    elif not quiet:
        out.print(trials_table(tuning, title))
        out.print(f"next: gdmix train {folder / BEST}", soft_wrap=True)
