"""Every kind of coordinate, by its `type`."""

from typing import Annotated

from pydantic import Field

from gdmix.config.coordinates import ExternalScores, FixedEffect, RandomEffect
from gdmix.config.custom import CustomEffect
from gdmix.config.factorization import Factorization

CoordinateSpec = Annotated[
    FixedEffect | RandomEffect | Factorization | CustomEffect | ExternalScores,
    Field(discriminator="type"),
]
