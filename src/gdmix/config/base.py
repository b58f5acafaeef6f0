"""What every part of the configuration is made of, and how its mistakes are worded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from gdmix.errors import ConfigError, did_you_mean

_Model = TypeVar("_Model", bound=type[BaseModel])

# The model that a place in the tree, or the title of an error, stands for.
_MODELS: dict[str, type[BaseModel]] = {}


class Strict(BaseModel):
    """Pure data: unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def known_as(*names: str) -> Callable[[_Model], _Model]:
    """Tell which model errors mean by these names; the whole tree's is ""."""

    def register(model: _Model) -> _Model:
        _MODELS.update(dict.fromkeys(names, model))
        return model

    return register


class Paths(Strict):
    """Files of training and validation rows."""

    train: tuple[str, ...]
    validation: tuple[str, ...] | None = None

    @field_validator("train", "validation", mode="before")
    @classmethod
    def _one_path(cls, value: Any) -> Any:
        return (str(value),) if isinstance(value, str | os.PathLike) else value

    @field_validator("train", "validation")
    @classmethod
    def _not_empty(cls, paths: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if paths is not None and not (paths and all(paths)):
            raise PydanticCustomError("empty", "is empty")
        return paths


_TYPES = ("fixed_effect", "random_effect", "factorization", "deep", "custom", "external_scores")
_ENCODERS = ("cnn", "lstm", "transformer", "hf", "frozen")
_TAGS = ("<column>", "<columns>", "<bins>", *_ENCODERS)  # of unions: not part of a path
_MESSAGES = {
    "missing": "is required",
    "too_short": "is empty",
    "extra_forbidden": "unknown key",
    "tuple_type": "should be a list",
    "dict_type": "should hold keys and values",
    "model_type": "should hold keys and values",
    "model_attributes_type": "should hold keys and values",
    "string_type": "should be text",
    "string_too_short": "is empty",
    "invalid_key": "should be text",
    "path_type": "should be a path",
}


@contextmanager
def config_errors(prefix: str | None) -> Iterator[None]:
    """Turn a validation error into a `ConfigError` of one line per mistake; None: let it be."""
    try:
        yield
    except ValidationError as error:
        if prefix is None:
            raise
        lines = [_line(item, error.title, prefix) for item in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def _line(item: Any, title: str, prefix: str) -> str:
    """Return one mistake's line: where it is, what it is, what was given."""
    kind, given = item["type"], item["input"]
    path = [
        str(part)
        for before, part in zip(("", *item["loc"]), item["loc"], strict=False)
        if part not in (*_TYPES, *_TAGS, "[key]") or before == "coordinates"
    ]
    message = _MESSAGES.get(kind, item["msg"].removeprefix("Input "))
    if kind.endswith(("_parsing", "_from_float")):
        message = message.partition(",")[0]
    if kind == "extra_forbidden":
        places = [str(part) for part in (title, *item["loc"][:-1])]
        model = next((_MODELS[p] for p in reversed(places) if p in _MODELS), _MODELS[""])
        keys = {field.alias or name for name, field in model.model_fields.items()}
        message += did_you_mean(path[-1], keys - {"name"})
    elif kind == "union_tag_not_found":
        known = _ENCODERS if path[-1:] == ["encoder"] else _TYPES
        message = f"needs `type`: one of {', '.join(known)}"
    elif kind == "union_tag_invalid":
        tag = item["ctx"]["tag"]
        known = _ENCODERS if path[-1:] == ["encoder"] else _TYPES
        message = f"unknown type '{tag}'{did_you_mean(tag, known)}; known: {', '.join(known)}"
    elif kind == "name":
        path = path[:-1] if path[-1:] == ["name"] else path
    elif path and isinstance(given, str | int | float | None) and message != "is empty":
        message += f" (got {given!r})"
    return f"{prefix}{'.'.join(path)}: {message}" if path else f"{prefix}{message}"
