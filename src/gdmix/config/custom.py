"""A fixed effect by an estimator of the user's own, named by where it is imported from."""

from __future__ import annotations

import importlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, field_validator, model_validator
from pydantic_core import PydanticCustomError

from gdmix.config.base import config_errors, known_as
from gdmix.config.coordinates import _Named


def _as_json(params: dict[str, Any]) -> Any:
    return json.loads(json.dumps(params, default=repr))


Params = Annotated[dict[str, Any], PlainSerializer(_as_json, when_used="json")]


@known_as("custom", "CustomEffect")
class CustomEffect(_Named):
    """A fixed effect that any estimator fits: LightGBM's, XGBoost's, scikit-learn's, or your own.

    `estimator` is a class, an estimator (its parameters are then `params`), or the place that a
    class is imported from. What a class of your own needs is told in docs/how_it_works.md.

    Examples
    --------
    >>> CustomEffect("global", estimator="lightgbm.LGBMClassifier", categorical=["user_id"],
    ...              params={"n_estimators": 50}).estimator
    'lightgbm.LGBMClassifier'
    """

    type: Literal["custom"] = "custom"
    estimator: str = Field(min_length=1, description="where it is imported from: module.Class")
    params: Params = Field({}, description="arguments of its constructor")
    features: tuple[str, ...] = Field((), description="feature bags: the first columns of X")
    categorical: tuple[str, ...] = Field(
        (), description="id columns: further columns of X, a number for each training value"
    )
    dense: bool = Field(False, description="give it an array of all zeros too, not a sparse matrix")

    @model_validator(mode="before")
    @classmethod
    def _from_estimator(cls, fields: Any) -> Any:
        given = fields.get("estimator") if isinstance(fields, dict) else None
        if given is None or isinstance(given, str):
            return fields
        if isinstance(given, type):
            return {**fields, "estimator": _place_of(given)}
        if not hasattr(given, "get_params"):
            raise PydanticCustomError(
                "estimator",
                f"estimator: an instance of {type(given).__name__} can't be taken apart, "
                "it has no get_params; give the class and `params`",
            )
        if fields.get("params"):
            raise PydanticCustomError(
                "estimator", "params: the estimator has its own; give its class to use these"
            )
        return {
            **fields,
            "estimator": _place_of(type(given)),
            "params": given.get_params(deep=False),
        }

    @field_validator("features", "categorical", mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("features", "categorical")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise PydanticCustomError("repeated", f"'{repeated[0]}' is listed twice")
        return names

    @model_validator(mode="after")
    def _something_to_see(self) -> CustomEffect:
        if not self.features and not self.categorical:
            raise PydanticCustomError("empty", "has neither features nor categorical columns")
        return self

    @property
    def bags(self) -> tuple[str, ...]:
        """Feature bags that it needs of rows."""
        return self.features

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The categorical columns."""
        return self.categorical

    def __init__(self, name: str = "", /, **fields: Any) -> None:
        with config_errors(f"{type(self).__name__}('{name}'): " if name else None):
            super().__init__(**({**fields, "name": name} if name else fields))


def _place_of(cls: type) -> str:
    """Return where a class is imported from, its package where that has it."""
    for module in (cls.__module__.partition(".")[0], cls.__module__):
        found = getattr(importlib.import_module(module), cls.__qualname__, None)
        if found is cls:
            return f"{module}.{cls.__qualname__}"
    raise PydanticCustomError(
        "estimator",
        f"estimator: class {cls.__qualname__} can't be imported from {cls.__module__}; "
        "define it at the top of a module",
    )
