"""YAML files in, and single settings put over what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from gdmix.errors import ConfigError, did_you_mean


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file.

    Raises
    ------
    ConfigError
        If it can't be read, is no valid YAML, or holds anything else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = (p.name for p in path.parent.glob("*.y*ml"))
        hint = did_you_mean(path.name, siblings)
        raise ConfigError(f"{path}: no such file{hint}") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: can't be read: it is not UTF-8 text") from None
    try:
        tree = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConfigError(f"{path}:{where} not valid YAML: {problem}") from None
    if tree is None:
        raise ConfigError(f"{path}: is empty")
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(tree).__name__}")
    return tree


_SETTINGS_OF_SPARK = "spark.conf"  # whose keys hold dots


def override(tree: dict[str, Any], key: str, value: str) -> None:
    """Set a dotted key to a YAML value.

    Raises
    ------
    ConfigError
        If there is no such place, or it is no YAML value.
    """
    node, place, last = tree, "", key
    while "." in last and place != _SETTINGS_OF_SPARK:
        # A name may hold dots itself: the longest one that is there.
        names = [name for name in node if last.startswith(f"{name}.")]
        parent = max(names, key=len) if names else last.partition(".")[0]
        is_new = not names and node is not tree
        if is_new and f"{place}.{parent}" != _SETTINGS_OF_SPARK:
            hint = did_you_mean(parent, map(str, node))
            raise ConfigError(f"--set {key}: there is no '{parent}' under '{place}'{hint}")
        if node.get(parent) is None:
            node[parent] = {}
        place = f"{place}.{parent}" if place else parent
        last = last[len(parent) + 1 :]
        node = node[parent]
        if not isinstance(node, dict):
            raise ConfigError(f"--set {key}: '{place}' has no keys of its own")
    try:
        node[last] = YAML(typ="safe", pure=True).load(value)
    except YAMLError:
        raise ConfigError(f"--set {key}: '{value}' is not a YAML value") from None
