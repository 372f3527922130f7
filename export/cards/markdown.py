"""Pieces of Markdown that every card is made of. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a bar inside a cell is escaped."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)])


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def code(language: str, text: str) -> str:
    """A block of code. What it holds ends in one newline."""
    return f"```{language}\n{text.strip()}\n```"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"


def counted(number: float, thing: str) -> str:
    """`1 class`, `8 images`, `0.5 epochs`."""
    plural = thing if number == 1 else f"{thing}es" if thing.endswith("s") else f"{thing}s"
    return f"{int(number) if number == int(number) else number:,} {plural}"


def in_order(targets: Iterable[str]) -> list[str]:
    """`target`, the branches by number, `fused`, `ensemble`."""
    rank = {"target": 0, "fused": 2, "ensemble": 3}
    return sorted(targets, key=lambda name: (rank.get(name, 1), len(name), name))
