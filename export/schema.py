"""What the JSON files of a package must hold: every field with its type. Fields that are not listed are let be. Torch-free."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import IntegrityError
from .format import PRECISIONS
from .package import CONFIG, MANIFEST, METRICS, PREPROCESS, Package

SHOWN = 60  # characters of a wrong value


@dataclass(frozen=True)
class Kind:
    """A single value: what it `takes`, in words, and whether one `fits`."""

    takes: str
    fits: Callable[[Any], bool]


@dataclass(frozen=True)
class Each:
    """An object whose values are all of one kind."""

    value: Any


@dataclass(frozen=True)
class ListOf:
    value: Any


@dataclass(frozen=True)
class Maybe:
    """`null`, or a value."""

    value: Any


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _numbers(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(map(_is_number, value))


def one_of(*words: str) -> Kind:
    return Kind(" or ".join(words), lambda value: value in words)


TEXT = Kind("a text", _is_text)
STRING = Kind("a text, which may be empty", lambda value: isinstance(value, str))
COUNT = Kind("a whole number, 0 or more", _is_count)
SIZE = Kind("a whole number, 1 or more", lambda value: _is_count(value) and value > 0)
NUMBER = Kind("a number", _is_number)
POSITIVE = Kind("a number, 0 or more", lambda value: _is_number(value) and value >= 0)
SHARE = Kind("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
PERCENT = Kind("percent, 0 to 100", lambda value: _is_number(value) and 0 <= value <= 100)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
SHA256 = Kind("64 hexadecimal digits", lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None)
MEAN = Kind("three numbers", lambda value: _numbers(value, 3))
STD = Kind("three numbers above 0", lambda value: _numbers(value, 3) and min(value) > 0)
BATCH = Kind(
    "three whole numbers, 1 <= MIN <= OPT <= MAX",
    lambda value: _numbers(value, 3) and all(map(_is_count, value)) and 1 <= value[0] <= value[1] <= value[2],
)
SHAPE = Kind(
    "a list of sizes and names",
    lambda value: isinstance(value, list) and value != [] and all(_is_text(dim) or (_is_count(dim) and dim > 0) for dim in value),
)
CAPABILITY = Kind(
    "a compute capability like 8.6", lambda value: isinstance(value, str) and re.fullmatch(r"\d+\.\d", value) is not None
)

VERSION = Kind(
    "a version, digits and dots", lambda value: isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)*", value) is not None
)
WORD = Kind(
    "a word of small letters, digits, - and _",
    lambda value: isinstance(value, str) and re.fullmatch(r"[a-z0-9][a-z0-9_-]*", value) is not None,
)

TENSOR = {"name": TEXT, "dtype": one_of("uint8", "float32"), "shape": SHAPE}
ACCURACY = {"n": SIZE, "top1": PERCENT, "top5": Maybe(PERCENT), "split": TEXT}
PARITY = {"n": COUNT, "agreement": SHARE, "max_abs_diff": Maybe(POSITIVE), "nan_count": COUNT, "largest_logit": POSITIVE}
LATENCY = {
    **dict.fromkeys(("batch", "calls", "passes?"), SIZE),
    **dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "mean_ms", "images_per_s"), POSITIVE),
}
# A `?` behind a name: it may be missing.
ARTIFACT: dict[str, Any] = {
    "path": TEXT,
    **dict.fromkeys(("format", "runtime"), WORD),
    "precision": one_of(*PRECISIONS),
    "sha256": SHA256,
    "bytes": SIZE,
    "input": TENSOR,
    "output": TENSOR,
    "batch": BATCH,
    "runtime_version": STRING,
    "compute_capability": Maybe(CAPABILITY),
    "details": {
        **dict.fromkeys(("sidecar?", "weights?", "from?"), TEXT),
        **dict.fromkeys(("sidecar_sha256?", "weights_sha256?"), SHA256),
        **dict.fromkeys(("opset?", "ir_version?"), SIZE),
        "outputs?": ListOf(TEXT),
    },
}
ANY_TENSOR = {"name": TEXT, "dtype": TEXT, "shape": SHAPE}  # what one part of a cascade gives to the next is of any type
ARTIFACT["details"] |= {
    "parts?": ListOf({**ARTIFACT, "input": ANY_TENSOR, "output": ANY_TENSOR, "details": dict(ARTIFACT["details"])}),
    "thresholds?": ListOf(NUMBER),
}
SIDECAR = {
    "name": TEXT, "sha256": SHA256, "bytes": SIZE, "runtime": WORD, "runtime_version": VERSION,
    "compute_capability": Maybe(CAPABILITY), "batch": BATCH, "input": ANY_TENSOR, "output": ANY_TENSOR, "header": {},
    "reproducible": FLAG, "system?": Maybe(TEXT), "compatible?": ListOf(TEXT),
}  # fmt: skip
CASCADE = {
    "values": ListOf(SHARE), "shares": ListOf(SHARE), "limit": NUMBER, "loss": NUMBER, "bound": NUMBER, "n": SIZE, "macs": POSITIVE,
}  # fmt: skip
SCHEMAS: dict[str, dict[str, Any]] = {
    MANIFEST: {
        **dict.fromkeys(("entry", "target", "method", "backbone", "dataset"), TEXT),
        "source": {"weights_sha256": SHA256, "epochs": COUNT, "given?": Maybe(TEXT)},
        "tensors": {"kept": ListOf(TEXT), "dropped": ListOf(TEXT)},
        "options": {"batch": BATCH, "input": one_of("uint8", "float"), "opset": Maybe(SIZE)},
        "gates": {"max_drop": Each(NUMBER), "min_agreement": Each(SHARE)},
        "verified": FLAG,
        "provenance": {"command": TEXT, "git_commit": Maybe(TEXT), "versions": Each(TEXT), "training": {}},
        "cascade?": CASCADE,
        "files": Each({"sha256": SHA256, "bytes": COUNT}),
        "artifacts": ListOf(ARTIFACT),
    },
    METRICS: {
        **dict.fromkeys(("entry", "target", "host"), TEXT),
        "student": {"params": SIZE, "macs": POSITIVE},
        "reference": Maybe(ACCURACY),
        "checkpoint": Maybe({"n": SIZE, "top1": PERCENT}),
        "artifacts": Each({
            **dict.fromkeys(("not_run?", "checker?", "dominated_by?"), TEXT),
            "parity?": PARITY,
            "accuracy?": ACCURACY,
            "latency?": ListOf(LATENCY),
            "bytes?": SIZE,
            "batches_exercised?": ListOf(SIZE),
            "outputs?": Each({"parity": PARITY, "accuracy?": ACCURACY}),
            "exits?": {"shares": Each(SHARE), "p50_ms": Each(POSITIVE), "agreement": SHARE},
        }),
    },
    CONFIG: {
        **dict.fromkeys(("method", "backbone", "target"), TEXT),
        "method_config": {}, "num_classes": SIZE, "weights_sha256": SHA256,
    },
    PREPROCESS: {
        "height": SIZE, "width": SIZE, "mean": MEAN, "std": STD, "resize?": COUNT, "interpolation": one_of("bilinear"),
        "crop": one_of("center"),
    },
}  # fmt: skip


def check_document(package: Package, name: str, document: Any) -> None:
    """Raises `IntegrityError` for the first field of one of the JSON files that cannot be what it says."""
    for field, value, takes in mismatches(document, SCHEMAS[name]):
        shown = repr(value) if len(repr(value)) <= SHOWN else f"{repr(value)[:SHOWN]}..."
        what = "is missing" if value is MISSING else f"cannot be {shown}"
        raise IntegrityError(
            f"{package.folder / name}: {field} {what}; it takes {takes}",
            hint="it is not what kdzoo wrote: copy it or export it again",
        )


class _Missing:
    """Stands for a field that is not there."""


MISSING = _Missing()


def mismatches(value: Any, spec: Any, at: str = "") -> Iterator[tuple[str, Any, str]]:
    """Every field that does not fit, with its value and what it takes."""
    if isinstance(spec, Kind):
        if value is MISSING or not spec.fits(value):
            yield at or "the document", value, spec.takes
    elif isinstance(spec, Maybe):
        if value is MISSING:
            yield at, value, "null or a value"
        elif value is not None:
            yield from mismatches(value, spec.value, at)
    elif isinstance(spec, ListOf):
        if not isinstance(value, list):
            yield at, value, "a list"
            return
        for index, item in enumerate(value):
            yield from mismatches(item, spec.value, f"{at}[{index}]")
    elif not isinstance(value, dict):
        yield at or "the document", value, "an object"
    elif isinstance(spec, Each):
        for name, item in value.items():
            yield from mismatches(item, spec.value, f"{at}[{name!r}]")
    else:
        yield from _fields(value, spec, at)


def _fields(value: dict[str, Any], spec: Mapping[str, Any], at: str) -> Iterator[tuple[str, Any, str]]:
    for key, kind in spec.items():
        name, optional = key.removesuffix("?"), key.endswith("?")
        if name in value or not optional:
            yield from mismatches(value.get(name, MISSING), kind, f"{at}.{name}" if at else name)
