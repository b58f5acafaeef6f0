"""The configuration of a run: one schema for YAML and for Python, one validation.

`RunConfig` is what a YAML file is parsed into; `FixedEffect` and `RandomEffect` are the
same specs that a user writes in Python. They are pure data: an engine builds the runtime
coordinate from them. Unknown keys are rejected, and all mistakes are reported at once.
"""

from gdmix.config.coordinates import (
    JOINT,
    BinnedColumn,
    ColumnRoles,
    Entity,
    EntityPart,
    ExternalScores,
    FeatureBag,
    FixedEffect,
    LinearSpec,
    RandomEffect,
)
from gdmix.config.custom import CustomEffect
from gdmix.config.deep import DeepFixedEffect
from gdmix.config.engine import EngineName, SparkConfig
from gdmix.config.factorization import Factorization
from gdmix.config.kinds import CoordinateSpec
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
    Prior,
    RunConfig,
    ValidateMode,
)
from gdmix.config.tuning import Candidates, TuneConfig
from gdmix.config.yaml_files import read_yaml

__all__ = [
    "DEFAULT_METRICS",
    "GROUPED_METRICS",
    "JOINT",
    "PLAIN_METRICS",
    "AvroLayout",
    "BinnedColumn",
    "Candidates",
    "ColumnRoles",
    "CoordinateSpec",
    "CustomEffect",
    "DataConfig",
    "DeepFixedEffect",
    "EngineName",
    "Entity",
    "EntityPart",
    "ExternalScores",
    "Factorization",
    "FeatureBag",
    "FixedEffect",
    "JoinedData",
    "LinearSpec",
    "MetricSpec",
    "ModelConfig",
    "Prior",
    "RandomEffect",
    "RunConfig",
    "SparkConfig",
    "Task",
    "TuneConfig",
    "ValidateMode",
    "parse_metric",
    "read_yaml",
]
