"""YAML, read in one way everywhere, the tables that lie beside the modules which use them; rows by a key."""

import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from string import Formatter
from typing import Any, TypeVar

import yaml

Row = TypeVar("Row")
Key = TypeVar("Key", bound=Hashable)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml's is ten times faster
    """Safe YAML in which nothing is lost in silence: no key twice; 24:00:00 and 012345 stay text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value in lines and key.tag != "tag:yaml.org,2002:merge":
                raise ValueError(
                    f"'{key.value}' stands twice, in lines {lines[key.value]} and {line}; keep one"
                )
            if isinstance(key.value, str):
                lines[key.value] = line
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


# YAML 1.1 counts 24:00:00 to the base of 60 and 012345 to that of 8.
_KEPT_AS_TEXT = re.compile(r"[-+]?(?:0[0-9_]+|[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?)$")
_Loader.yaml_implicit_resolvers = {
    first: [("tag:yaml.org,2002:str", _KEPT_AS_TEXT), *resolvers] if first in "-+0123456789" else resolvers
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def load_yaml(text: str | bytes) -> Any:
    """The content of YAML text, read in one way everywhere. Raises ``ValueError`` or ``yaml.YAMLError``."""
    return yaml.load(text, _Loader)  # noqa: S506 - a safe loader


def table_of(module: str, name: str = "") -> Any:
    """The YAML file beside a module (its ``__file__``), of the same name or of another one."""
    path = Path(module)
    return load_yaml((path.with_name(name) if name else path.with_suffix(".yaml")).read_text("utf-8"))


_FIELD = re.compile(r"\{([a-z_.0-9]+)\}")


def filled(table: Mapping[str, Any], **names: Any) -> dict[str, Any]:
    """The table with each ``{name.attribute}`` in its texts filled in, at any depth.

    A text that is nothing but one becomes the value itself, a number for one.
    """

    def value_of(value: Any) -> Any:
        if isinstance(value, list):
            return [value_of(entry) for entry in value]
        if isinstance(value, dict):
            return filled(value, **names)
        if not isinstance(value, str):
            return value
        alone = _FIELD.fullmatch(value)
        return Formatter().get_field(alone[1], (), names)[0] if alone else value.format(**names)

    return {key: value_of(value) for key, value in table.items()}


def grouped(rows: Iterable[Row], key: Callable[[Row], Key]) -> dict[Key, list[Row]]:
    """Rows by what ``key`` says of each; keys and rows in the order in which they come."""
    found: dict[Key, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found
