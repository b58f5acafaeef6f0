"""Which settings are searched, and where in their ranges a value lies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel

from gdmix.config import Candidates, Factorization, LinearSpec, ModelConfig, RandomEffect
from gdmix.config.base import config_errors
from gdmix.config.coordinates import AUTO
from gdmix.coordinates.variance_components import VarianceComponent
from gdmix.data.feature_index import INTERCEPT_NAME
from gdmix.errors import ConfigError, did_you_mean

Space = Mapping[str, Candidates]
Values = Mapping[str, float]
Components = Sequence[VarianceComponent]

_WEIGHTS = ("l2", "intercept_l2", "l1")
_DEFAULT = Candidates(low=0.01, high=1000.0)
_PREFIX = "coordinates."
_ESTIMATING_PASSES = 10
_Config = TypeVar("_Config", bound=ModelConfig)


def search_space(config: ModelConfig, chosen: Space) -> Space:
    """Return what is searched: what the user chose, or else every L2 weight.

    Of a coordinate that is fitted these are `l2`, if it has features or factors, and
    `intercept_l2` of a random effect; not of one whose `l2` chooses itself.

    Raises
    ------
    ConfigError
        One line per mistake.
    """
    if chosen:
        mistakes = [line for key in chosen for line in _mistakes(config, key)]
        if mistakes:
            raise ConfigError("\n".join(mistakes))
        for end in (0.0, 1.0):
            with_values(config, {key: candidate(c, end) for key, c in chosen.items()})
        return dict(chosen)
    found = []
    fitted: dict[str, Any] = dict(config.fitted)
    for name, spec in fitted.items():
        if "l2" not in _weights_of(spec) or spec.l2 in AUTO:
            continue
        if isinstance(spec.l2, dict):
            found += [f"{_PREFIX}{name}.l2.{bag}" for bag in spec.l2]
        elif spec.features or isinstance(spec, Factorization):
            found.append(f"{_PREFIX}{name}.l2")
        if isinstance(spec, RandomEffect) and spec.intercept and spec.regularizes_intercept:
            found.append(f"{_PREFIX}{name}.intercept_l2")
    if not found:
        raise ConfigError("tune: no L2 weight to search; name the settings in tune.space")
    return dict.fromkeys(found, _DEFAULT)


def _mistakes(config: ModelConfig, key: str) -> list[str]:
    """Return what is wrong with a key of the space."""
    name, setting = taken_apart(key, config.coordinates)
    spec = config.coordinates.get(name)
    if not key.startswith(_PREFIX) or not name:
        specs = config.coordinates.items()
        known = [f"{_PREFIX}{name}.{w}" for name, spec in specs for w in _weights_of(spec)]
        full = _PREFIX + key if "." in key and not key.startswith(_PREFIX) else key
        hint = did_you_mean(full, known) or "".join(f"; such as {k}" for k in known[:1])
        return [f"tune.space: '{key}' is no weight of a coordinate{hint}"]
    if spec is None:
        hint = did_you_mean(name, config.coordinates)
        return [f"tune.space.{key}: there is no coordinate '{name}'{hint}"]
    weights = _weights_of(spec)
    if setting not in weights:
        hint = did_you_mean(setting, weights)
        can = ", ".join(weights) or "nothing"
        return [f"tune.space.{key}: can't be searched{hint}; of '{name}' can: {can}"]
    if getattr(spec, "locked", False):
        return [f"tune.space.{key}: the coordinate is locked: it is not fitted"]
    return []


def taken_apart(key: str, coordinates: Iterable[str]) -> tuple[str, str]:
    """Return the coordinate and the setting of a key such as ``coordinates.global.l2.user``."""
    path = key.removeprefix(_PREFIX)
    for name in coordinates:
        if path.startswith(f"{name}.l2."):
            return name, path.removeprefix(f"{name}.")
    name, _, setting = path.rpartition(".")
    return name, setting


def _weights_of(spec: Any) -> list[str]:
    """Return those settings of a coordinate that can be searched."""
    weights = [weight for weight in _WEIGHTS if weight in type(spec).model_fields]
    if isinstance(spec, LinearSpec) and len(spec.features) > 1:
        weights += [f"l2.{bag}" for bag in spec.features]
    return weights


def with_values(config: _Config, values: Values) -> _Config:
    """Return the configuration with other weights.

    Raises
    ------
    ConfigError
        If they don't go with the rest.
    """
    coordinates: dict[str, Any] = dict(config.coordinates)
    for key, value in values.items():
        name, setting = taken_apart(key, coordinates)
        spec = coordinates[name]
        fields = spec if isinstance(spec, dict) else {**_given(spec), "type": spec.type}
        field, _, bag = setting.partition(".")
        if bag:
            others = {other: config.linear[name].bag_weight(other) for other in fields["features"]}
            known = fields["l2"] if isinstance(fields.get("l2"), dict) else others
            coordinates[name] = {**fields, field: {**known, bag: value}}
        else:
            coordinates[name] = {**fields, setting: value}
    with config_errors("tune.space: "):
        return type(config).model_validate({**_given(config), "coordinates": coordinates})


def _given(model: BaseModel) -> dict[str, Any]:
    """Return the fields that were given, not left at their defaults."""
    return {name: getattr(model, name) for name in model.model_fields_set if name != "name"}


def estimating(config: _Config, space: Space) -> _Config | None:
    """Return the configuration with L2 weights estimated that are searched, if it may have such.

    Those are all that a linear coordinate has. The passes are few: it is for a place to start.
    """
    coordinates: dict[str, Any] = dict(config.coordinates)
    for key in space:
        name, setting = taken_apart(key, config.coordinates)
        spec = config.linear.get(name)
        if spec is not None and setting != "l1":
            fields = {k: v for k, v in _given(spec).items() if k != "intercept_l2"}
            coordinates[name] = {**fields, "type": spec.type, "l2": "auto"}
    tree = {k: v for k, v in _given(config).items() if k not in ("solver", "tolerance")}
    tree |= {"coordinates": coordinates, "passes": _ESTIMATING_PASSES}
    try:
        with config_errors(""):
            return type(config).model_validate(tree)
    except ConfigError:
        return None


def estimated_values(space: Space, components: Components) -> Values | None:
    """Return what has been estimated of the weights; None if any of them has not.

    The weight of a coordinate's slopes is the mean of its bags' on the log scale, by how many
    coefficients the data determine.
    """
    values = {}
    for key, candidates in space.items():
        name, setting = taken_apart(key, {c.coordinate: c for c in components})
        of_intercept, bag = setting == "intercept_l2", setting.removeprefix("l2.")
        own = [
            (c.l2, c.effective)
            for c in components
            if c.coordinate == name
            and (c.group == INTERCEPT_NAME) == of_intercept
            and (bag == setting or c.group == bag)
            and c.l2 > 0
        ]
        total = sum(effective for _, effective in own)
        if setting == "l1" or not total:
            return None
        mean = sum(effective * math.log(l2) for l2, effective in own) / total
        values[key] = nearest(candidates, math.exp(mean))
    return values


def own_values(config: ModelConfig, space: Space) -> Values | None:
    """Return the configuration's own weights, None where the space does not have them."""
    values = {}
    for key, candidates in space.items():
        name, setting = taken_apart(key, config.coordinates)
        spec: Any = config.coordinates[name]
        field, _, bag = setting.partition(".")
        value = spec.intercept_weight if setting == "intercept_l2" else getattr(spec, field)
        if bag:
            value = spec.bag_weight(bag)
        elif isinstance(value, dict):
            return None
        if isinstance(value, str) or not _has(candidates, value):
            return None
        values[key] = float(value)
    return values


def _has(candidates: Candidates, value: float) -> bool:
    if candidates.values is not None:
        return value in candidates.values
    assert candidates.low is not None and candidates.high is not None
    return candidates.low <= value <= candidates.high


def candidate(candidates: Candidates, position: float) -> float:
    """Return the value at a position from 0 to 1: on the log scale, or among the values.

    Values of a range have four digits, which is what a person reads.
    """
    if candidates.values is not None:
        n = len(candidates.values)
        return candidates.values[min(int(position * n), n - 1)]
    assert candidates.low is not None and candidates.high is not None
    value = candidates.low * (candidates.high / candidates.low) ** position
    return min(max(float(f"{value:.4g}"), candidates.low), candidates.high)


def nearest(candidates: Candidates, value: float) -> float:
    """Return the candidate that is nearest to a positive value on the log scale."""
    if candidates.values is None:
        assert candidates.low is not None and candidates.high is not None
        value = min(max(value, candidates.low), candidates.high)
        return candidate(candidates, position(candidates, value))
    return min(candidates.values, key=lambda v: abs(math.log(max(v, 1e-300) / value)))


def position(candidates: Candidates, value: float) -> float:
    """Return where a value lies: the inverse of `candidate`."""
    if candidates.values is not None:
        return (candidates.values.index(value) + 0.5) / len(candidates.values)
    assert candidates.low is not None and candidates.high is not None
    return math.log(value / candidates.low) / math.log(candidates.high / candidates.low)


def distance(space: Space, a: Values, b: Values) -> float:
    """Return how far apart two choices of weights are, each range being 1 wide."""
    return math.dist(
        [position(candidates, a[key]) for key, candidates in space.items()],
        [position(candidates, b[key]) for key, candidates in space.items()],
    )
