"""Every kind of coordinate, by its `type`."""

from typing import Annotated

from pydantic import Field

from gdmix.config.coordinates import ExternalScores, FixedEffect, RandomEffect
from gdmix.config.custom import CustomEffect
from gdmix.config.deep import DeepFixedEffect
from gdmix.config.factorization import Factorization

CoordinateSpec = Annotated[
    FixedEffect | RandomEffect | Factorization | DeepFixedEffect | CustomEffect | ExternalScores,
    Field(discriminator="type"),
]
