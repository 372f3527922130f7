"""The page of a report as a strict reader sees it. Import it as `kdzoo.tests.page`."""

from __future__ import annotations

from html.parser import HTMLParser

from kdzoo.train.report.section import TITLES

SECTIONS = list(TITLES)


class Reader(HTMLParser):
    """Reads a page as strictly as it can: every tag is closed, by the tag that opened it."""

    VOID = ("meta", "link", "img", "source", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def check_page(html: str) -> Reader:
    """What holds for every page, whatever is missing on it."""
    page = Reader(html)
    assert html.startswith("<!DOCTYPE html>") and {"lang": "en"} in page.attributes("html")
    assert page.attributes("script") == [] and page.attributes("iframe") == []
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset"):
            value = attributes.get(name, "data:")
            assert value.startswith("data:") or (tag == "a" and value.startswith("#")), f"<{tag} {name}={value[:60]}>"
        assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in html and "url(" not in html and "http:" not in html and "https:" not in html
    assert all(image.get("alt", "").strip() for image in page.attributes("img"))
    assert [attributes["id"] for attributes in page.attributes("section")] == SECTIONS
    assert [link["href"] for link in page.attributes("a")] == [f"#{key}" for key in SECTIONS]
    assert [meta["name"] for meta in page.attributes("meta") if "name" in meta] == ["viewport"]
    return page
