"""YAML as people write settings: 1e-6 is a number, and no key is given twice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml


def read_file(path: Path) -> dict[str, Any]:
    """The settings in a YAML file. Raises: ValueError that names the file and what is wrong."""
    if not path.is_file():
        raise ValueError(f"There is no configuration file {path} (looked for from {Path.cwd()}).")
    try:
        tree = read(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold settings such as `name: demo`, it holds {tree!r}.")
    return tree


def read(text: str) -> Any:
    """The value of a YAML text. Raises: yaml.YAMLError."""
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-6 is a number (YAML 1.1 asks for 1.0e-6) and no key is repeated."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key '{key.value}' is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
