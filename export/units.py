"""Quantities as people write them: 2ms, 100M, 1.5MiB, 70%. Exact: what `write` gives holds when `parse` reads it. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal

from ..errors import UsageError

DIGITS = 4  # that a written figure has


@dataclass(frozen=True)
class Quantity:
    """A kind of figure.

    Attributes:
        units: factors to the unit that figures are kept in, in small letters; `""` is a number alone.
        written: the units that a figure is written in, from the smallest. like: examples for who writes it wrongly.
    """

    name: str
    units: Mapping[str, Decimal]
    written: tuple[str, ...]
    like: str

    def parse(self, text: str) -> float:
        """Raises `UsageError` for what is no such quantity, or none at all."""
        number, unit = self.split(text)
        if not number:
            raise UsageError(f"no file has {self.name} {text.strip()}", hint=f"write it like {self.like}")
        return float(number * self.units[unit])

    def split(self, text: str) -> tuple[Decimal, str]:
        """Number and unit; raises `UsageError` where they are none."""
        found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([a-zµ%]*)", text.strip().lower(), re.ASCII)
        if found is None or found[2] not in self.units:
            raise UsageError(f"'{text}' is no {self.name}", hint=f"write it like {self.like}")
        return Decimal(found[1]), found[2]

    def write(self, value: float, rounding: str = ROUND_HALF_EVEN) -> str:
        """`value` in the largest unit that it fills; decimal's `ROUND_CEILING` and `ROUND_FLOOR` keep it on one side."""
        exact = Decimal(str(value))
        unit = next((u for u in reversed(self.written) if self.units[u.lower()] <= exact), self.written[0])
        number = exact / self.units[unit.lower()]
        rounded = number.quantize(Decimal(1).scaleb(number.adjusted() - DIGITS + 1), rounding)
        text = f"{rounded:f}"
        return (text.rstrip("0").rstrip(".") if "." in text else text) + unit


class Share(Quantity):
    """In percent. A number alone is a share up to 1, and percent above."""

    def parse(self, text: str) -> float:
        number, unit = self.split(text)
        percent = number * 100 if unit == "" and number <= 1 else number
        if percent > 100:
            raise UsageError(f"{self.name} {text.strip()} is more than all", hint=f"write it like {self.like}")
        return float(percent)


def _powers(base: int, suffix: str) -> dict[str, Decimal]:
    return {f"{letter}{suffix}": Decimal(base) ** power for power, letter in enumerate("kmg", 1)}


ONE = Decimal(1)
LATENCY = Quantity(
    "latency", {"us": ONE / 1000, "µs": ONE / 1000, "ms": ONE, "s": ONE * 1000}, ("ms", "s"), "500us, 2ms or 1.5s"
)  # milliseconds
COUNT = Quantity("amount", {"": ONE, **_powers(1000, "")}, ("", "K", "M", "G"), "472756, 500K, 0.5M or 1.2G")
SIZE = Quantity(
    "size", {"": ONE, "b": ONE, **_powers(1000, ""), **_powers(1000, "b"), **_powers(1024, "ib")},
    ("B", "KB", "MB", "GB"), "900KB, 2MB or 1.5MiB",
)  # fmt: skip
ACCURACY = Share("accuracy", {"": ONE, "%": ONE}, ("%",), "0.70 or 70%")
