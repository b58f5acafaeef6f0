"""Generalized (deep) mixed models for large-scale personalisation.

>>> from gdmix import MixedModel, FixedEffect, RandomEffect
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from gdmix._version import __version__

if TYPE_CHECKING:
    from gdmix.config import (
        CustomEffect,
        DeepFixedEffect,
        ExternalScores,
        Factorization,
        FixedEffect,
        RandomEffect,
        RunConfig,
    )
    from gdmix.errors import (
        ConfigError,
        DataError,
        EngineError,
        GdmixError,
        ModelError,
        OutputError,
    )
    from gdmix.estimator import MixedModel
    from gdmix.tuning import tune

_HOMES = {
    "MixedModel": "gdmix.estimator",
    "FixedEffect": "gdmix.config",
    "CustomEffect": "gdmix.config",
    "DeepFixedEffect": "gdmix.config",
    "ExternalScores": "gdmix.config",
    "Factorization": "gdmix.config",
    "RandomEffect": "gdmix.config",
    "RunConfig": "gdmix.config",
    "tune": "gdmix.tuning",
    "GdmixError": "gdmix.errors",
    "ConfigError": "gdmix.errors",
    "DataError": "gdmix.errors",
    "EngineError": "gdmix.errors",
    "ModelError": "gdmix.errors",
    "OutputError": "gdmix.errors",
}

__all__ = [
    "ConfigError",
    "CustomEffect",
    "DataError",
    "DeepFixedEffect",
    "EngineError",
    "ExternalScores",
    "Factorization",
    "FixedEffect",
    "GdmixError",
    "MixedModel",
    "ModelError",
    "OutputError",
    "RandomEffect",
    "RunConfig",
    "__version__",
    "tune",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: importing gdmix itself costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'gdmix' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
