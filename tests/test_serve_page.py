"""The page of a server: what it is made of, what it shows of the branches, and who can read it."""

from __future__ import annotations

import base64
import hashlib
import http.client
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kdzoo.export.pareto_picture import COLOURS
from kdzoo.serve.page import FOLDER, read_page
from kdzoo.tests.browser import Browser
from kdzoo.tests.page import Reader
from kdzoo.tests.served_page import ALL_ANSWERED, browses, opened, write_golden
from kdzoo.tests.serving import TARGETS, Served, serve, small_models

CAPTION = "Figures of every file that is served, as its card has them"
MEASURE = """(() => {
  const place = byId("plot"), box = (e) => { const b = e.getBBox(); return [b.x, b.y, b.x + b.width, b.y + b.height] };
  place.style.width = "WIDTHpx";
  drawPlot(place, POINTS);
  const boxes = (kind) => [...place.querySelectorAll(kind)].map(box);
  return { labels: boxes(".label"), marks: boxes(".point"), size: place.querySelector("svg").viewBox.baseVal.width };
})()"""
NAMED = {"button", "link", "textbox", "image", "region", "table", "heading", "columnheader", "rowheader", "article", "group"}


class Page(Reader):
    VOID = (*Reader.VOID, "input")


@pytest.fixture(scope="module")
def models(once: Callable[..., Path]) -> Path:
    return small_models(once)


@pytest.fixture(scope="module")
def served(models: Path) -> Iterator[Served]:
    with serve(models) as running:
        yield running


@pytest.fixture(scope="module")
def picture(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_golden(models, tmp_path_factory.mktemp("pictures") / "golden.png")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as running:
        yield running


@pytest.fixture
def page(browser: Browser, served: Served) -> Browser:
    """The page of the server, just opened."""
    return opened(browser, served.http)


def test_the_document_is_well_formed_and_its_policy_lets_exactly_its_own_parts_run() -> None:
    found = read_page()
    html = found.html.decode()
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>") and {"lang": "en"} in page.attributes("html")
    addresses = {a[name] for _, a in page.tags for name in ("src", "href", "action") if name in a}
    assert addresses == {"data:,", "openapi.json", "metrics"}, "the page needs something else than itself"
    assert not any(name == "style" or name.startswith("on") for _, a in page.tags for name in a), "the policy forbids these"
    assert set(re.findall(r"https?://[\w./]+", html)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in html and "url(" not in html and "innerHTML" not in html
    policy = dict(part.split(" ", 1) for part in found.policy.split("; "))
    for kind in ("style", "script"):
        texts = re.findall(f"<{kind}>(.*?)</{kind}>", html, re.DOTALL)
        hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts]
        assert hashes and policy[f"{kind}-src"].split() == hashes
    assert "unsafe" not in found.policy and policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    assert len(list(FOLDER.glob("*.js"))) == html.count("<script>"), "a file of the folder is not in the page"


def test_every_text_can_be_read_on_its_paper_in_light_and_in_dark() -> None:
    """WCAG 2.2: 4.5 to 1 for text, 3 to 1 for what is drawn."""
    css = (FOLDER / "page.css").read_text()
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6});", block)) for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)[:2])
    for colours in (light, dark):
        assert set(colours) == set(light)
        for paper in ("paper", "well"):
            for ink in ("ink", "faint", "accent", "wrong"):
                assert contrast(colours[ink], colours[paper]) >= 4.5, f"{ink} on {paper}: {colours}"
            assert contrast(colours["bar"], colours[paper]) >= 3.0, f"bar on {paper}: {colours}"
    for precision, colour in COLOURS.items():
        assert f".{precision} {{ fill: {colour.lower()}; }}" in css, "another colour than in the picture of a family"


def contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


@browses
def test_the_table_has_the_figures_of_the_cards_and_the_front_is_the_front(page: Browser, served: Served) -> None:
    connection = http.client.HTTPConnection(served.http)
    connection.request("GET", "/v2/kdzoo/models")
    cards = json.load(connection.getresponse())
    connection.close()
    rows = page.value("[...byId('rows').rows].map(r => [...r.cells].map(c => c.textContent))")
    runs = [(card["latency"][0]["p50_ms"], card["accuracy"]["top1"]) for card in cards]
    front = [not any(o[0] <= r[0] and o[1] >= r[1] and o != r for o in runs) for r in runs]
    assert len(rows) == len(TARGETS) and len(page.value("[...document.querySelectorAll('#plot .ring')].map(() => 1)")) == sum(front)
    for row, card, is_front in zip(rows, cards, front, strict=True):
        assert row[0] in (card["target"], f"branch {card['target']}")
        assert row[1] == f"{card['accuracy']['top1']:.2f}" and row[2] == str(card["accuracy"]["n"])
        assert float(row[3]) == pytest.approx(card["latency"][0]["p50_ms"], abs=0.0051)
        for text, key in zip(row[4:7], ("params", "macs", "bytes"), strict=True):
            assert float(text) == pytest.approx(card[key] / 1e6, rel=0.006), key
        assert row[7:] == [card["precision"], card["runtime"], "yes" if is_front else "no", "yes"]
    assert cards[0]["host"] in page.value("byId('measured').textContent")
    told = page.value("byId('plot-told').textContent")
    assert all(f"{card['accuracy']['top1']:.2f} %" in told for card in cards)


@browses
def test_what_was_not_measured_is_told_and_times_of_two_machines_are_told_apart(browser: Browser, served: Served) -> None:
    page = opened(browser, served.http, 360)
    page.value("cards[0].accuracy = null; cards[1].latency = null; cards[2].host = 'another machine'; cards[2].ready = false; 1")
    page.value("showTable(); showPlot(); 1")
    rows = page.value("[...byId('rows').rows].map(r => [...r.cells].map(c => c.textContent))")
    unknown = "–not measured"  # the words are for those who cannot see the sign
    assert rows[0][1:3] == [unknown, unknown] and rows[1][3] == unknown and rows[2][-1] == "no"
    assert page.value("document.querySelectorAll('#plot .point').length") == 1
    said = page.value("byId('measured').textContent")
    assert "another machine" in said and "(cascade)" in said and "cannot be compared" in said
    assert page.value("document.documentElement.scrollWidth") == 360
    page.value("cards[2].latency = null; showPlot(); 1")
    assert page.value("byId('plot').textContent").startswith("Nothing that is served has both")


@browses
def test_labels_of_the_plot_stay_apart_and_inside_however_close_the_points_are(page: Browser) -> None:
    draw = np.random.default_rng(0)
    spots = enumerate(draw.random((12, 2)).tolist())
    points = [{"label": f"branch {i}", "ms": 1 + 0.3 * x, "top1": 60 + y, "precision": list(COLOURS)[i % 4]} for i, (x, y) in spots]
    for width in (300, 860):
        found = page.value(MEASURE.replace("WIDTH", str(width)).replace("POINTS", json.dumps(points)))
        assert len(found["marks"]) == 12 and found["size"] == width and len(found["labels"]) >= 9
        for one, other in itertools.combinations(found["labels"], 2):
            assert not covers(one, other), f"two labels lie on each other at {width} pixels"
        assert not any(covers(label, mark) for label in found["labels"] for mark in found["marks"])
        assert all(label[0] >= 0 and label[2] <= width for label in found["labels"])


def covers(one: list[float], other: list[float]) -> bool:
    return one[0] < other[2] - 1 and other[0] < one[2] - 1 and one[1] < other[3] - 2 and other[1] < one[3] - 2


@browses
def test_everything_that_can_be_used_or_seen_has_a_name(page: Browser, picture: Path) -> None:
    page.drop("#zone", picture)
    page.until(ALL_ANSWERED)
    page.call("Accessibility.enable")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    named = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    assert [each for each in named if each[0] in NAMED and not each[1].strip()] == []
    found = {role for role, _ in named}
    assert {"banner", "main", "contentinfo", "status", *NAMED} - found == {"textbox"}, "the field of the token is hidden"
    assert {("button", "Choose a picture"), ("region", CAPTION), ("table", CAPTION)} <= set(named)
    headings = page.value("[...document.querySelectorAll('h1, h2, h3')].map(h => h.tagName).join('')")
    assert headings == "H1H2H3H3H3H2H2"
