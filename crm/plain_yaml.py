"""YAML without surprises: what looks like text is text, and a key stands once.

YAML 1.1, which PyYAML reads, makes a boolean of NO, a number of 12:30 and a date of 2024-01-01, and keeps the last of two equal
keys. A country, a time or a list of excluded items is lost that way without a word.
"""

from __future__ import annotations

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML 1.2's core types, decimal numbers only."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own way

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that stands twice."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(self.construct_object(key_node, deep=True))
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return dict(super().construct_mapping(node, deep))


for _tag, _shape, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(0|[1-9][0-9]*)(\.[0-9]+([eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)", "-+0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_shape})$"), list(_first))


def load(text: str) -> Any:
    """Return what a YAML text holds. Raises yaml.YAMLError, also for a key that stands twice.

    >>> load("country: NO")
    {'country': 'NO'}
    """
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
