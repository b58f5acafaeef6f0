"""Options that several commands have, and what their texts mean."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from gdmix.errors import ConfigError

_DEBUG = "gdmix.debug"

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


def is_debugged(context: Any) -> bool:
    """Whether --debug was given, to a click context or one below it."""
    return bool(context.meta.get(_DEBUG))


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


def spark_settings(master: str | None, conf: list[str] | None, debug: bool) -> dict[str, str]:
    """Return keys and YAML values of what `spark` of a configuration holds."""
    settings = {} if master is None else {"master": json.dumps(master)}
    if debug:
        settings["log_level"] = "INFO"
    given = dict(key_and_value(text, "--conf", "KEY=VALUE") for text in conf or [])
    return settings | {f"conf.{key}": json.dumps(value) for key, value in given.items()}


def spark_config(settings: dict[str, str]) -> Any:
    """Return the `SparkConfig` that these keys and values make."""
    from gdmix.config import SparkConfig
    from gdmix.config.base import config_errors
    from gdmix.config.yaml_files import override

    tree: dict[str, Any] = {}
    for key, value in settings.items():
        override(tree, f"spark.{key}", value)
    with config_errors("spark."):
        return SparkConfig.model_validate(tree.get("spark", {}))


def key_and_value(text: str, option: str, form: str) -> tuple[str, str]:
    """Part what an option was given at its first equals sign; `form` is what is asked for."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{option} {text}: expected {form}")
    return key, value


def validate_mode(text: str) -> Any:
    """Return what --validate was given, if it is a mode."""
    if text not in ("strict", "drop", "off"):
        raise ConfigError(f"--validate {text}: is none of strict, drop, off")
    return text
