"""Data of examples, and kernels, made ready."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from gdmix.cli.options import Format, Quiet
from gdmix.cli.terminal import out, progress


class Split(StrEnum):
    """What the rows of an example are divided by."""

    rows = "rows"
    users = "users"


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

    with progress("fetching MovieLens-100k", None, quiet):
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


def warmup(quiet: Quiet = False) -> None:
    """Compile all kernels now, so that no later run has to."""
    from gdmix.warmup import compile_kernels

    with progress("compiling kernels", None, quiet):
        seconds = compile_kernels()
    if not quiet:
        out.print(f"kernels ready ({seconds:.1f} s of CPU)")
