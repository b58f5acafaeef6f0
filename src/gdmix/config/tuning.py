"""What `gdmix tune` searches: the key `tune` of a run's YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from gdmix.config.base import Strict, known_as
from gdmix.config.metrics import parse_metric
from gdmix.errors import ConfigError

_FORM = "should be [low, high], or {values: [...]}"


@known_as("space")
class Candidates(Strict):
    """Values that a setting may take: any from `low` to `high` on a log scale, or some.

    Examples
    --------
    >>> Candidates.model_validate([0.1, 100]).high
    100.0
    """

    low: float | None = Field(None, gt=0, allow_inf_nan=False, description="least value")
    high: float | None = Field(None, gt=0, allow_inf_nan=False, description="largest value")
    values: tuple[float, ...] | None = Field(
        None, min_length=1, description="these alone, instead of a range"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            if len(value) != 2:
                raise PydanticCustomError("range", _FORM)
            return dict(zip(("low", "high"), value, strict=True))
        if not isinstance(value, Mapping | Candidates):
            raise PydanticCustomError("range", _FORM)
        return value

    @field_validator("values")
    @classmethod
    def _ascending(cls, values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if values is None:
            return None
        if any(not 0 <= v < float("inf") for v in values):
            raise PydanticCustomError("range", "values should be finite and not negative")
        return tuple(sorted(set(values)))

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        ends = [end for end in (self.low, self.high) if end is not None]
        if len(ends) != (2 if self.values is None else 0):
            raise PydanticCustomError("range", _FORM)
        if ends and ends[0] >= ends[1]:
            raise PydanticCustomError("range", f"low ({ends[0]:g}) is not below high ({ends[1]:g})")
        return self


@known_as("tune")
class TuneConfig(Strict):
    """A search over regularisation weights."""

    trials: int = Field(30, ge=1, description="models to train; a grid may have fewer")
    method: Literal["bayesian", "tpe", "random", "grid"] = Field(
        "bayesian", description="how the next weights are chosen; tpe: by Optuna"
    )
    metric: str | None = Field(None, description="to judge by; default: the first metric")
    folds: int | None = Field(
        None, ge=2, description="judge by that many parts of the training rows in turn"
    )
    space: dict[str, Candidates] = Field(
        {}, description="setting to its candidates; default: l2 and intercept_l2"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of what is drawn")
    timeout: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="seconds after which no trial begins"
    )

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, name: str | None) -> str | None:
        if name is not None:
            try:
                parse_metric(name)
            except ConfigError as error:
                raise PydanticCustomError("metric", str(error)) from None
        return name
