"""One HTML page that needs nothing else: style and pictures inside, no script, no address of another machine."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from ..evaluate import FEW, MANY
from .facts import Run
from .overlay import Cell, Grid
from .pictures import Picture
from .section import Section

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1a1a1a; --faint: #5c5c5c; --line: #d5d5d5; --well: #f4f4f2; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #1c2026; --ink: #e8e8e8; --faint: #a9aeb5; --line: #3c424b; --well: #262b33; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 47rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; }
p { margin: .5rem 0; } .note { color: var(--faint); font-size: .875rem; }
.missing { background: var(--well); border-left: .25rem solid var(--faint); padding: .5rem .75rem; }
nav ol { padding-left: 1.4rem; margin: .5rem 0; } a { color: inherit; }
table { border-collapse: collapse; font-size: .875rem; } th, td { padding: .3rem .5rem; text-align: left; vertical-align: top; }
tr { border-bottom: 1px solid var(--line); } th { font-weight: 600; } .facts th { white-space: nowrap; color: var(--faint); }
.facts td { overflow-wrap: anywhere; } .number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
.scroll { overflow-x: auto; } .panels { display: flex; flex-wrap: wrap; gap: .75rem; margin: .75rem 0; }
.panels picture { flex: 1 1 18.5rem; max-width: 22.5rem; }
.panels img { display: block; width: 100%; height: auto; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; list-style: none; padding: 0; margin: .75rem 0; font-size: .875rem; }
.legend img { width: 1.05rem; height: 1.05rem; vertical-align: -.2rem; margin-right: .3rem; }
.tiles th, .tiles td { padding: .25rem .3rem; font-size: .8rem; line-height: 1.25; width: 6.6rem; }
.tiles img { display: block; width: 6rem; margin-bottom: .2rem; }
.tiles td { overflow-wrap: anywhere; } .tiles .wrong { font-weight: 600; }
.scale { display: flex; align-items: center; gap: .5rem; font-size: .8rem; } .scale img { height: .75rem; width: 10rem; }
footer { margin-top: 2.5rem; border-top: 1px solid var(--line); }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
MARKS = {"right": "✓ right", "wrong": "✗ wrong", "": ""}
COLUMNS = (("top1", "top-1 %"), ("top5", "top-5 %"), ("many", "many %"), ("medium", "medium %"), ("few", "few %"))


def page(run: Run, sections: Sequence[Section], footer: str) -> str:
    """The whole document."""
    manifest = run.manifest
    title = f"{manifest.entry}: report of a run"
    contents = "".join(f'<li><a href="#{s.key}">{escape(s.title)}</a>{" (left out)" if s.missing else ""}</li>' for s in sections)
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(f'{manifest.method} on {manifest.backbone}, {manifest.dataset}.')} One network was trained; every target "
        f"below can be cut out of it. Pictures 3 to 6 are of the kinds that the papers of AHBF, DBFSKD and THFKD draw.</p>",
        f'<nav aria-label="sections"><ol>{contents}</ol></nav>',
        "<h2>The run</h2>",
        f'<table class="facts"><tbody>{"".join(map(_fact, run.facts()))}</tbody></table>',
        "<h2>Targets</h2>",
        target_table(run),
        *(_section(number, section) for number, section in enumerate(sections, start=1)),
        f'<footer><p class="note">{escape(footer)}</p></footer>',
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n'
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def target_table(run: Run) -> str:
    """Parameters, multiply-adds and accuracy of every target; columns that no target has are left out."""
    found = [(key, name) for key, name in COLUMNS if any(key in row for row in run.targets.values())]
    header = ["params", "M MACs", *(name for _, name in found), "n"]
    rows = []
    for target, row in run.targets.items():
        numbers = [f"{row['params']:,}", f"{row['macs'] / 1e6:,.2f}", *(_percent(row.get(key)) for key, _ in found)]
        numbers.append(f"{row['n']:,}" if "n" in row else "-")
        cells = "".join(f'<td class="number">{escape(number)}</td>' for number in numbers)
        twin = f" (= branch {run.twins[target]})" if target in run.twins else ""
        rows.append(f'<tr><th scope="row">{escape(target + twin)}</th>{cells}</tr>')
    head = "".join(f'<th scope="col" class="number">{escape(name)}</th>' for name in header)
    kinds = f"many, medium, few: classes of more than {MANY}, {FEW} to {MANY} and fewer than {FEW} training images. "
    kinds = kinds if {"many", "medium", "few"} & {key for key, _ in found} else ""
    table = f'<table><thead><tr><th scope="col">target</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    note = f"MACs: multiply-adds of convolutions and linear layers for one image. {kinds}n: images evaluated."
    return f'<div class="scroll">{table}</div><p class="note">{note}</p>'


def _percent(value: Any) -> str:
    return "-" if value is None else f"{value:.2f}"


def _fact(row: tuple[str, str]) -> str:
    return f'<tr><th scope="row">{escape(row[0])}</th><td>{escape(row[1])}</td></tr>'


def _section(number: int, section: Section) -> str:
    parts = [f'<section id="{section.key}"><h2>{number}. {escape(section.title)}</h2>']
    if section.missing:
        parts.append(f'<p class="missing">Left out: {escape(section.missing)}.</p>')
    parts += _paragraphs(section.text, "")
    if section.legend:
        parts.append(f'<ul class="legend">{"".join(f"<li>{_picture(i)}{escape(name)}</li>" for i, name in section.legend)}</ul>')
    if section.grid is not None:
        parts.append(_grid(section.grid))
    if section.pictures:
        parts.append(f'<div class="panels">{"".join(map(_picture, section.pictures))}</div>')
    return "\n".join([*parts, *_paragraphs(section.notes, ' class="note"'), "</section>"])


def _paragraphs(lines: Iterable[str], attributes: str) -> list[str]:
    return [f"<p{attributes}>{escape(line)}</p>" for line in lines]


def _data(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _picture(shown: Picture) -> str:
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{_data(shown.dark, "png")}">'
        f'<img src="{_data(shown.light, "png")}" alt="{escape(shown.alt)}"></picture>'
    )


def _grid(grid: Grid) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in grid.header)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in grid.rows)
    scale = f'<img src="{_data(grid.scale, "jpeg")}" alt="colours from dark violet through red to light yellow">'
    return (
        f'<div class="scroll"><table class="tiles"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        f'<p class="scale"><span>nothing</span>{scale}<span>largest value of that map</span></p>'
    )


def _cell(cell: Cell) -> str:
    mark = f'<br><span class="{cell.mark}">{MARKS[cell.mark]}</span>' if cell.mark else ""
    lines = "<br>".join(map(escape, cell.lines))
    return f'<td><img src="{_data(cell.jpeg, "jpeg")}" alt="{escape(cell.alt)}">{lines}{mark}</td>'
