"""Frozen dataclasses from plain data, strictly: an unknown key, a wrong type or a missing field is refused with its name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, get_args, get_type_hints

from ..errors import BadValue, UnknownName, UsageError


def build(cls: Any, document: Mapping[str, Any], prefix: str = "") -> Any:
    """A `cls` with the fields that `document` gives; `prefix` is where it stands in the whole, as in `optimizer.`.

    Raises:
        UnknownName: for a key that is no field.
        BadValue: for a value that does not fit its field.
        UsageError: for a field that has no default and is not given.
    """
    hints, known = _hints(cls), [f.name for f in fields(cls)]
    values: dict[str, Any] = {}
    for key, value in document.items():
        if key not in known:
            homes = [k for k in known if is_dataclass(hints[k]) and key in {f.name for f in fields(hints[k])}]
            hint = f"write it below {homes[0]}, as in {homes[0]}: {{{key}: ...}}" if homes else ""
            raise UnknownName("recipe key", f"{prefix}{key}", [f"{prefix}{k}" for k in known], hint=hint)
        values[key] = _value(hints[key], value, f"{prefix}{key}")
    for f in fields(cls):
        if f.name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise UsageError(f"recipe key '{prefix}{f.name}' is missing", hint=f"every recipe, or its base, says {f.name}: ...")
    return cls(**values)


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def _as_float(value: Any) -> float:
    """A whole number may have more digits than any float."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _value(hint: Any, value: Any, key: str) -> Any:
    """`value` as the type of the field; YAML knows no tuples and reads 5e-4 as a string, which we forgive."""
    if is_dataclass(hint):
        if not isinstance(value, dict):
            raise BadValue("recipe key", key, value, "keys of its own", known=[f.name for f in fields(hint)])
        return build(hint, value, f"{key}.")
    choices = get_args(hint)
    try:
        if hint is float and not isinstance(value, bool):
            return _as_float(value)
        if getattr(hint, "__origin__", None) is tuple and isinstance(value, (list, tuple)):
            return tuple(_value(choices[0], item, key) for item in value)
        if getattr(hint, "__origin__", None) is Literal and value in choices:
            return value
    except (TypeError, ValueError):
        pass
    plain = getattr(hint, "__origin__", hint)
    if isinstance(plain, type) and isinstance(value, plain) and isinstance(value, bool) == (plain is bool):
        return value
    takes = {tuple: "a list", dict: "keys of its own", Literal: "one of these"}.get(plain) or f"a {hint.__name__}"
    known = [str(c) for c in choices if isinstance(c, str)] if plain is Literal else []
    raise BadValue("recipe key", key, value, takes, known=known)
