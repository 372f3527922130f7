"""YAML of keys and values together with the line of every key, so that an error can name it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import UsageError

TEXT, DATE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:timestamp"
Place = Callable[[int], str]  # what messages call a line, from 1; 0 is the whole


@dataclass(frozen=True)
class MarkedYaml:
    """`lines` holds the line, from 1, of every key by its dotted name, as in `optimizer.lr`."""

    document: dict[str, Any]
    lines: dict[str, int]


def read_marked(path: Path, known: Sequence[str] = ()) -> MarkedYaml:
    """The mapping in the file `path`; `known`: what to propose where there is no such file.

    Raises:
        UsageError: no file, no mapping, or what `parse` refuses.
    """

    def place(line: int) -> str:
        return f"recipe {path}, line {line}" if line else f"recipe {path}"

    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"there is no recipe {path}", known=known) from None
    except OSError as error:
        raise UsageError(f"{place(0)} cannot be read: {error.strerror}") from None
    document, lines = parse(text, place)
    if not isinstance(document, dict):
        raise UsageError(f"{place(1)}: it is not a mapping of keys to values", hint="write lines like epochs: 300")
    return MarkedYaml(document, lines)


def parse(text: bytes | str, place: Place, key: str = "") -> tuple[Any, dict[str, int]]:
    """What `text` holds, the value of `key` where there is one, and the line of every key below.

    Raises:
        UsageError: no YAML, a key twice or one that is no text, or an alias, with the line where there is one.
    """
    lines: dict[str, int] = {}
    try:
        reader = Reader(text, place)
        node = reader.get_single_node()
        if node is None:
            return None, lines
        _mark(node, key, lines, place)
        return reader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = error.problem or error.context or "it is not YAML"
        raise UsageError(f"{place(mark.line + 1 if mark else 0)}: cannot be read as YAML: {what}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{place(0)} cannot be read: {' '.join(str(error).split())}") from None


class Reader(yaml.SafeLoader):
    """YAML without anchors and aliases, in which a date is text; a value that cannot be read has its line."""

    DEEPEST = 20
    yaml_constructors = {**yaml.SafeLoader.yaml_constructors, DATE: yaml.SafeLoader.construct_yaml_str}  # noqa: RUF012  as in PyYAML

    def __init__(self, text: bytes | str, place: Place) -> None:
        super().__init__(text)
        self.place, self.depth = place, 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        where = self.place(event.start_mark.line + 1)
        if getattr(event, "anchor", None):
            raise UsageError(
                f"{where}: there is an anchor or an alias, '{event.anchor}'", hint="recipes have none: write the value out"
            )
        if self.depth == self.DEEPEST:
            raise UsageError(f"{where}: there are lists within lists {self.depth} times over", hint="close a bracket before")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, (int, str)):
                str(value).encode()  # which thousands of digits and half a surrogate pair refuse, and with them every message
        except (ValueError, OverflowError, KeyError) as error:
            kind = node.tag.rpartition(":")[2]
            what = f"{str(node.value)[:40]!r} cannot be a value of type {kind}"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from error
        return value


def _mark(node: yaml.Node, key: str, lines: dict[str, int], place: Place) -> None:
    """Note the line of every key below `node`, the value of `key`."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _mark(item, key, lines, place)
    if isinstance(node, yaml.MappingNode):
        for inner, value in node.value:
            line = inner.start_mark.line + 1
            name = f"{key}.{inner.value if isinstance(inner, yaml.ScalarNode) else '[...]'}".removeprefix(".")
            if inner.tag != TEXT:
                raise UsageError(f"{place(line)}: key '{name}' is no word to YAML", hint="keys are names, as in epochs: 300")
            if name in lines:
                first = f"key '{name}' is there twice, first in line {lines[name]}"
                raise UsageError(f"{place(line)}: {first}", hint="remove one of them")
            lines[name] = line
            _mark(value, name, lines, place)
