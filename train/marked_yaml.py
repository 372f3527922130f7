"""A YAML file of keys and values together with the line of every key, so that an error can name it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import UsageError

TEXT = "tag:yaml.org,2002:str"


@dataclass(frozen=True)
class MarkedYaml:
    """`lines` holds the line, from 1, of every key by its dotted name, as in `optimizer.lr`."""

    document: dict[str, Any]
    lines: dict[str, int]


def read_marked(path: Path, known: Sequence[str] = ()) -> MarkedYaml:
    """The mapping in the file `path`; `known`: what to propose where there is no such file.

    Raises:
        UsageError: no file, no YAML, no mapping, a key twice, or an alias, with the line where there is one.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"there is no recipe {path}", known=known) from None
    except OSError as error:
        raise UsageError(f"recipe {path} cannot be read: {error.strerror}") from None
    lines: dict[str, int] = {}
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if isinstance(node, yaml.MappingNode):
            _mark(node, "", 1, lines, path, set())
        document = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f", line {mark.line + 1}"
        what = error.problem or error.context or "it is not YAML"
        raise UsageError(f"recipe {path}{line}: cannot be read as YAML: {what}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"recipe {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise UsageError(f"recipe {path}, line 1: it is not a mapping of keys to values", hint="write lines like epochs: 300")
    return MarkedYaml(document, lines)


def _mark(node: yaml.Node, key: str, line: int, lines: dict[str, int], path: Path, seen: set[int]) -> None:
    """Note the line of every key below `node`, the value of `key`."""
    if id(node) in seen:
        raise UsageError(f"recipe {path}, line {line}: '{key}' is an alias", hint="recipes have none: write the value out")
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _mark(item, key, item.start_mark.line + 1, lines, path, seen)
    if isinstance(node, yaml.MappingNode):
        for inner, value in node.value:
            name, line = f"{key}.{inner.value}".removeprefix("."), inner.start_mark.line + 1
            if inner.tag != TEXT:
                raise UsageError(f"recipe {path}, line {line}: key '{name}' is no word to YAML", hint="put it into quotes")
            if name in lines:
                first = f"key '{name}' is there twice, first in line {lines[name]}"
                raise UsageError(f"recipe {path}, line {line}: {first}", hint="remove one of them")
            lines[name] = line
            _mark(value, name, line, lines, path, seen)
