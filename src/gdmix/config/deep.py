"""A deep fixed effect: texts, ids and numbers through a network, as a user writes it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from gdmix.config.base import Strict, config_errors, known_as
from gdmix.config.coordinates import (
    BinnedColumn,
    EntityPart,
    _Named,
    check_parts,
    entity_name,
    parts_of,
)
from gdmix.config.custom import Params
from gdmix.config.encoders import CnnEncoder, Encoder
from gdmix.config.training import Training

DOCUMENT = "document"
RANKING_LOSSES = ("softmax", "pairwise", "lambdarank")
_NETWORK = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

Size = Annotated[int, Field(ge=1)]


def _as_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_list)]


class _Embedded(Strict):
    dim: int = Field(16, ge=1, description="size of its vector")
    buckets: int | None = Field(
        None, ge=1, le=2**31, description="number values by a hash: no vocabulary, none is unknown"
    )
    min_count: int = Field(
        1, ge=1, description="values of fewer training rows are as one that training did not see"
    )

    @model_validator(mode="after")
    def _one_way_to_number(self) -> Self:
        if self.buckets is not None and self.min_count > 1:
            raise PydanticCustomError("vocabulary", "buckets and min_count: choose one")
        return self


@known_as("categorical")
class Category(_Embedded):
    """A column of ids, or the bins of a number: a vector of each value is learned."""

    bins: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] | None = Field(
        None, min_length=1, description="edges, ascending: take a number's bin as the value"
    )


@known_as("crosses")
class Cross(_Embedded):
    """Several columns, or bins of numbers: a vector of each combination is learned."""

    columns: tuple[EntityPart, ...] = Field(description="columns, or {column: age, bins: [18]}")

    @field_validator("columns")
    @classmethod
    def _each_once(cls, columns: tuple[EntityPart, ...]) -> tuple[EntityPart, ...]:
        check_parts(columns)
        return columns

    @property
    def key(self) -> str:
        """What the combination is called."""
        return entity_name(self.columns)


def _as_categories(value: Any) -> Any:
    if isinstance(value, str):
        value = (value,)
    if isinstance(value, list | tuple):
        repeated = sorted({str(c) for c in value if value.count(c) > 1})
        if repeated:
            raise PydanticCustomError("repeated", f"'{repeated[0]}' is listed twice")
        return {column: {} for column in value}
    if isinstance(value, Mapping):
        return {column: {} if own is None else own for column, own in value.items()}
    return value


def _as_crosses(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return value
    return tuple({"columns": c} if isinstance(c, list | tuple) else c for c in value)


class _Inputs(Strict):
    """What a network is given of a row."""

    text: Names = Field((), description="columns of text")
    categorical: Annotated[dict[str, Category], BeforeValidator(_as_categories)] = Field(
        {}, description="columns of ids: a list, or each with its settings"
    )
    crosses: Annotated[tuple[Cross, ...], BeforeValidator(_as_crosses)] = Field(
        (), description="combinations of columns of ids"
    )
    dense: Names = Field((), description="feature bags of numbers, which are standardized")
    wide: Names = Field((), description="feature bags of many features, few of which a row has")

    @property
    def keyed(self) -> dict[str, Category | Cross]:
        """What a vector is learned of per value, by the name of its key."""
        own: dict[str, Category | Cross] = {}
        for column, category in self.categorical.items():
            own[_category_key(column, category)] = category
        return own | {cross.key: cross for cross in self.crosses}

    def _derived(self) -> Iterator[tuple[str, tuple[EntityPart, ...]]]:
        for column, category in self.categorical.items():
            if category.bins is not None:
                parts = parts_of(BinnedColumn(column=column, bins=category.bins))
                yield _category_key(column, category), parts
        for cross in self.crosses:
            yield cross.key, cross.columns

    def _is_empty(self) -> bool:
        return not (self.text or self.keyed or self.dense or self.wide)


def _category_key(column: str, category: Category) -> str:
    if category.bins is None:
        return column
    return entity_name(BinnedColumn(column=column, bins=category.bins))


@known_as("sides")
class Side(_Inputs):
    """One of the things that meet in a row, such as the document, the user or the query.

    Its inputs become one vector of the coordinate's `dim`, which meets those of other sides.
    """

    hidden: tuple[Size, ...] = Field(
        (), description="sizes of layers between its inputs and its vector"
    )

    @model_validator(mode="after")
    def _something_to_see(self) -> Self:
        if self._is_empty():
            raise PydanticCustomError("empty", "has no inputs: text, categorical, dense, wide")
        return self


@known_as("refit")
class Refit(Strict):
    """What differs where training goes on from an earlier network: later passes, earlier models."""

    steps: int | None = Field(None, ge=0, description="instead of those of `training`; 0: no more")
    epochs: int | None = Field(None, ge=1, description="instead of those of `training`")
    learning_rate: float | None = Field(None, gt=0, allow_inf_nan=False)
    encoder_learning_rate: float | None = Field(None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise PydanticCustomError("training", "steps and epochs: choose one")
        return self

    def applied_to(self, training: Training) -> Training:
        """Return the training of such a fit."""
        changed = {key: v for key, v in self.model_dump().items() if v is not None}
        if self.steps is not None or self.epochs is not None:
            changed = {"steps": None, "epochs": None} | changed
        return training.model_copy(update=changed)


@known_as("deep", "DeepFixedEffect")
class DeepFixedEffect(_Named, _Inputs):
    """A fixed effect that a neural network fits, of texts, ids and numbers.

    Examples
    --------
    >>> DeepFixedEffect("global", text="title", wide=["user", "movie"], hidden=[64]).type
    'deep'
    """

    type: Literal["deep"] = "deep"
    sides: dict[str, Side] = Field(
        {},
        description="what meets in a row, by name: `document`, or else the first, is what "
        "the others are compared with",
    )
    encoder: Encoder = Field(
        CnnEncoder(), description="of texts: cnn, lstm, transformer, hf, frozen"
    )
    dim: int = Field(64, ge=1, description="size of the vector of a side")
    interaction: tuple[Literal["cosine", "inner", "hadamard", "difference", "concat"], ...] = Field(
        ("hadamard", "concat"),
        description="what the deep part sees of two sides' vectors",
    )
    hidden: tuple[Size, ...] = Field((64,), description="sizes of the deep part's hidden layers")
    activation: Literal["relu", "tanh", "gelu"] = Field("relu", description="of hidden layers")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of values that a training step leaves out of layers"
    )
    wide_dim: int = Field(
        16,
        ge=0,
        description="size of the vector as which the deep part sees wide bags; 0: it does not",
    )
    shallow: tuple[Size, ...] = Field(
        (), description="sizes of the layers of a tower of its own over all wide bags"
    )
    skip: bool = Field(True, description="wide bags also add to the score directly, linearly")
    loss: Literal["pointwise", "softmax", "pairwise", "lambdarank"] = Field(
        "pointwise", description="of the task; or of the order of the rows within a group"
    )
    group: str | None = Field(
        None, min_length=1, description="column whose rows a ranking loss compares: query_id"
    )
    training: Training = Field(Training(), description="how the network is trained")
    refit: Refit = Field(Refit(), description="what differs when it goes on from earlier weights")
    model: str | None = Field(
        None, description="a network of your own, module:Class: forward(batch) gives (n,) scores"
    )
    params: Params = Field({}, description="arguments of its constructor")
    locked: bool = Field(False, description="keep initial_model's as it is: score, never fit")

    @field_validator("interaction", mode="before")
    @classmethod
    def _one_kind(cls, value: Any) -> Any:
        return _as_list(value)

    @field_validator("interaction")
    @classmethod
    def _some_kind(cls, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
        if not kinds:
            raise PydanticCustomError("too_short", "is empty")
        return kinds

    @field_validator("model")
    @classmethod
    def _place(cls, model: str | None) -> str | None:
        if model is not None and not _NETWORK.fullmatch(model):
            raise PydanticCustomError("model", "should be module:Class, such as mypkg.nets:MyNet")
        return model

    @property
    def parts(self) -> dict[str, _Inputs]:
        """The inputs of the deep part itself, under "", and of each side."""
        return {"": self, **self.sides}

    @property
    def texts(self) -> tuple[str, ...]:
        """Columns of text."""
        return tuple(column for part in self.parts.values() for column in part.text)

    @property
    def keyed_inputs(self) -> dict[str, Category | Cross]:
        """All that a vector is learned of per value, by the name of its key."""
        return {key: own for part in self.parts.values() for key, own in part.keyed.items()}

    @property
    def dense_bags(self) -> tuple[str, ...]:
        """All bags of numbers."""
        return tuple(bag for part in self.parts.values() for bag in part.dense)

    @property
    def wide_bags(self) -> tuple[str, ...]:
        """All wide bags."""
        return tuple(bag for part in self.parts.values() for bag in part.wide)

    @property
    def document(self) -> str | None:
        """The side that others are compared with."""
        return DOCUMENT if DOCUMENT in self.sides else next(iter(self.sides), None)

    @property
    def bags(self) -> tuple[str, ...]:
        """Feature bags that it needs of rows."""
        return self.dense_bags + self.wide_bags

    @property
    def gap_bags(self) -> tuple[str, ...]:
        """Those of them whose numbers may be missing."""
        return self.dense_bags

    def place_of(self, bag: str) -> str:
        """Return the key that a bag is named under."""
        for side, part in self.parts.items():
            for key, bags in (("dense", part.dense), ("wide", part.wide)):
                if bag in bags:
                    return f"sides.{side}.{key}" if side else key
        raise KeyError(bag)

    @property
    def key_columns(self) -> tuple[str, ...]:
        """Columns of text and ids, combinations of these, and what rows are grouped by."""
        group = () if self.group is None else (self.group,)
        return tuple(dict.fromkeys((*self.texts, *self.keyed_inputs, *group)))

    @property
    def optional_keys(self) -> frozenset[str]:
        """Keys that a row may lack: a text is empty then, a value one that nobody has seen."""
        return frozenset(self.key_columns) - {self.group}

    @property
    def text_keys(self) -> frozenset[str]:
        """Those of them that are nothing but texts."""
        return frozenset(self.texts) - self.keyed_inputs.keys() - {self.group}

    @property
    def derived_entities(self) -> dict[str, tuple[EntityPart, ...]]:
        """What those of its keys are derived from that no column holds."""
        return dict(own for part in self.parts.values() for own in part._derived())

    @property
    def is_fitted(self) -> bool:
        """Whether training changes it."""
        return not self.locked

    @model_validator(mode="after")
    def _inputs_once(self) -> Self:
        if all(part._is_empty() for part in self.parts.values()):
            raise PydanticCustomError(
                "empty", "has no inputs: text, categorical, dense, wide, sides"
            )
        listed = {
            "text column": self.texts,
            "column of ids": [key for part in self.parts.values() for key in part.keyed],
            "bag": self.bags,
        }
        for what, names in listed.items():
            repeated = sorted({name for name in names if list(names).count(name) > 1})
            if repeated:
                raise PydanticCustomError("repeated", f"{what} '{repeated[0]}' is listed twice")
        return self

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if (self.loss in RANKING_LOSSES) != (self.group is not None):
            raise PydanticCustomError(
                "loss",
                f"loss: {self.loss} needs `group`: the column whose rows it compares"
                if self.group is None
                else f"group: only a ranking loss compares rows: {', '.join(RANKING_LOSSES)}",
            )
        if self.params and self.model is None:
            raise PydanticCustomError("model", "params: are of a `model` of your own")
        top = self.text or self.keyed or self.dense or (self.wide and self.wide_dim)
        if self.model is None and not (top or self.sides or self.shallow):
            raise PydanticCustomError(
                "empty", "wide_dim: 0 leaves a linear model; that is `type: fixed_effect`"
            )
        if self.shallow and not self.wide_bags:
            raise PydanticCustomError("empty", "shallow: there are no wide bags for the tower")
        return self

    def __init__(self, name: str = "", /, **fields: Any) -> None:
        with config_errors(f"{type(self).__name__}('{name}'): " if name else None):
            super().__init__(**({**fields, "name": name} if name else fields))
