"""A factorization: what two entities have in common, as the product of their latent factors."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from gdmix.config.base import config_errors, known_as
from gdmix.config.coordinates import Entity, EntityPart, _Named, check_parts, entity_name, parts_of

MAX_RANK = 200


def _positive_or_auto(value: Any) -> Any:
    try:
        number = 1.0 if value == "auto" else float(value)
    except (TypeError, ValueError):
        number = 0.0
    if not 0.0 < number < float("inf"):
        raise PydanticCustomError("weight", "should be a positive number, or auto")
    return value if value == "auto" else number


def _as_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


FactorL2 = Annotated[float | Literal["auto"], BeforeValidator(_positive_or_auto)]
Bags = Annotated[tuple[str, ...], BeforeValidator(_as_list)]


@known_as("factorization", "Factorization")
class Factorization(_Named):
    """Matrix factorization: a row's score is the product of its two entities' factors.

    Each entity has `rank` factors. With `features` an entity's factors are drawn to what a linear
    model of its features says, which is also what an entity has that training has not seen.

    Examples
    --------
    >>> Factorization("taste", entities=["user_id", "movie_id"], rank=5,
    ...               features={"movie_id": ["genres"]}).rank
    5
    """

    type: Literal["factorization"] = "factorization"
    entities: tuple[Entity, Entity] = Field(
        description="the two entities; each as the `entity` of a random effect"
    )
    rank: int = Field(8, ge=1, le=MAX_RANK, description="number of factors of each entity")
    features: dict[str, Bags] = Field(
        {}, description="entity to feature bags from which its factors are foretold"
    )
    l2: FactorL2 = Field(
        3.0, description="L2 weight of the factors; auto: estimated, one per factor and side"
    )
    method: Literal["variational", "map"] = Field(
        "variational",
        description="variational: heed that factors are uncertain; map: minimise the objective",
    )
    alternations: int = Field(2, ge=1, description="rounds over both sides in one fit")
    tolerance: float = Field(
        1e-8, gt=0, lt=1, description="stop at this gradient norm relative to the one at zero"
    )
    max_iterations: int = Field(100, ge=1, description="Newton iterations of an entity")
    locked: bool = Field(False, description="keep initial_model's as it is: score, never fit")

    @field_validator("entities", mode="before")
    @classmethod
    def _two(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise PydanticCustomError("entity", "should be a list of two entities")
        return value

    @field_validator("entities")
    @classmethod
    def _each_part_once(cls, entities: tuple[Any, Any]) -> tuple[Any, Any]:
        for entity in entities:
            check_parts(entity)
        return entities

    @model_validator(mode="after")
    def _two_sides(self) -> Self:
        one, other = self.key_columns
        if one == other:
            raise PydanticCustomError("entity", f"entities: '{one}' is listed twice")
        return self

    @model_validator(mode="after")
    def _features_of_a_side(self) -> Self:
        for key, bags in self.features.items():
            if key not in self.key_columns:
                known = " and ".join(self.key_columns)
                raise PydanticCustomError(
                    "entity", f"features: '{key}' is not one of the entities {known}"
                )
            repeated = sorted({b for b in bags if bags.count(b) > 1})
            if repeated:
                raise PydanticCustomError(
                    "repeated", f"features.{key}: bag '{repeated[0]}' is listed twice"
                )
        return self

    @model_validator(mode="after")
    def _weights_have_a_method(self) -> Self:
        if self.l2 == "auto" and self.method == "map":
            raise PydanticCustomError(
                "weight",
                "l2: auto takes method: variational; "
                "the most probable factors say nothing of their variance",
            )
        return self

    @property
    def bags_of_sides(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Feature bags of the one entity and of the other."""
        one, other = self.key_columns
        return self.features.get(one, ()), self.features.get(other, ())

    @property
    def bags(self) -> tuple[str, ...]:
        """Feature bags that it needs of rows."""
        one, other = self.bags_of_sides
        return tuple(dict.fromkeys((*one, *other)))

    @property
    def key_columns(self) -> tuple[str, str]:
        """The two entities."""
        one, other = self.entities
        return entity_name(one), entity_name(other)

    @property
    def derived_entities(self) -> dict[str, tuple[EntityPart, ...]]:
        """What those of its entities are derived from that no column holds."""
        return {
            entity_name(entity): parts_of(entity)
            for entity in self.entities
            if not isinstance(entity, str)
        }

    @property
    def is_fitted(self) -> bool:
        """Whether training changes it."""
        return not self.locked

    def __init__(self, name: str = "", /, **fields: Any) -> None:
        with config_errors(f"{type(self).__name__}('{name}'): " if name else None):
            super().__init__(**({**fields, "name": name} if name else fields))
