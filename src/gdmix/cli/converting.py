"""The same in another format."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from gdmix.cli.options import Description, Format, Join, Quiet, key_and_value
from gdmix.cli.terminal import out, progress
from gdmix.errors import ConfigError


class ModelFormat(StrEnum):
    """Formats of models that a command can be asked for."""

    parquet = "parquet"
    avro = "avro"
    photon = "photon"


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

    with progress("converting", None, quiet):
        done = convert_rows(data, output, column or [], join or [], uid)
    if not quiet:
        out.print(f"{done.path}: {done.rows:,} rows", soft_wrap=True)


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
    with progress("converting", None, quiet):
        done = convert_features(run_config, output, records, shared)
    for written in () if quiet else done:
        out.print(f"{written.path}: {written.rows:,} rows", soft_wrap=True)


def model(
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
    split = dict(key_and_value(text, "--split-crossed", form) for text in split_crossed or [])
    kinds: dict[ModelFormat, Literal["parquet", "avro", "photon"]]
    kinds = {
        ModelFormat.parquet: "parquet",
        ModelFormat.avro: "avro",
        ModelFormat.photon: "photon",
    }
    with progress("converting", None, quiet):
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
