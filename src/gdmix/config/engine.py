"""Where a run is carried out: on this machine, or on Spark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from gdmix.config.base import Strict, known_as

EngineName = Literal["local", "spark"]


@known_as("spark")
class SparkConfig(Strict):
    """How `engine: spark` reaches a cluster.

    It is not needed where a Spark session is at hand, or where `spark-submit` says all of it.
    """

    master: str | None = Field(
        None,
        min_length=1,
        description="such as local[4], spark://HOST:7077 or yarn; default: Spark's, local[*]",
    )
    conf: dict[str, str] = Field({}, description="Spark's own settings: spark.executor.memory: 4g")
    partitions: int | None = Field(
        None, ge=1, description="parts that a random effect's rows go into; default: by its size"
    )
    log_level: Literal["OFF", "ERROR", "WARN", "INFO", "DEBUG"] = Field(
        "ERROR", description="of what Spark writes to the terminal"
    )

    @field_validator("master")
    @classmethod
    def _classic(cls, master: str | None) -> str | None:
        if master is not None and master.startswith("sc://"):
            raise PydanticCustomError(
                "connect", "is a Spark Connect server, which has no RDDs; use spark://HOST:7077"
            )
        return master

    @field_validator("conf", mode="before")
    @classmethod
    def _texts(cls, conf: Any) -> Any:
        """Take numbers and truth values as Spark writes them."""
        if not isinstance(conf, Mapping):
            return conf
        known = {True: "true", False: "false"}
        return {
            key: known[value]
            if isinstance(value, bool)
            else str(value)
            if isinstance(value, int | float)
            else value
            for key, value in conf.items()
        }

    @field_validator("conf")
    @classmethod
    def _of_spark(cls, conf: dict[str, str]) -> dict[str, str]:
        for key in conf:
            if not key.startswith("spark."):
                raise PydanticCustomError("conf", f"'{key}' is no setting of Spark: spark.NAME")
        if "spark.master" in conf:
            raise PydanticCustomError("conf", "spark.master: has a place of its own: `master`")
        if conf.get("spark.dynamicAllocation.enabled", "false").lower() == "true":
            raise PydanticCustomError(
                "conf",
                "spark.dynamicAllocation.enabled: a fixed effect needs all its executors at once; "
                "set it to false, and spark.executor.instances",
            )
        return conf
