"""The configuration of a run: one schema for YAML and for Python, one validation.

`RunConfig` is what a YAML file is parsed into; `FixedEffect` and `RandomEffect` are the
same specs that a user writes in Python. They are pure data: an engine builds the runtime
coordinate from them. Unknown keys are rejected, and all mistakes are reported at once.
"""

from gdmix.config.coordinates import (
    JOINT,
    BinnedColumn,
    ColumnRoles,
    CoordinateSpec,
    Entity,
    EntityPart,
    ExternalScores,
    FeatureBag,
    FixedEffect,
    LinearSpec,
    RandomEffect,
)
from gdmix.config.metrics import (
    DEFAULT_METRICS,
    GROUPED_METRICS,
    PLAIN_METRICS,
    MetricSpec,
    Task,
    parse_metric,
)
from gdmix.config.run import (
    AvroLayout,
    DataConfig,
    JoinedData,
    ModelConfig,
    RunConfig,
    ValidateMode,
)
from gdmix.config.yaml_files import read_yaml

__all__ = [
    "DEFAULT_METRICS",
    "GROUPED_METRICS",
    "JOINT",
    "PLAIN_METRICS",
    "AvroLayout",
    "BinnedColumn",
    "ColumnRoles",
    "CoordinateSpec",
    "DataConfig",
    "Entity",
    "EntityPart",
    "ExternalScores",
    "FeatureBag",
    "FixedEffect",
    "JoinedData",
    "LinearSpec",
    "MetricSpec",
    "ModelConfig",
    "RandomEffect",
    "RunConfig",
    "Task",
    "ValidateMode",
    "parse_metric",
    "read_yaml",
]
