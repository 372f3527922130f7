"""The page of a server, asked about pictures in a headless Chromium: in every way they come, and whatever goes wrong."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdzoo.tests.browser import PATIENCE, Browser
from kdzoo.tests.served_page import (
    ALL_ANSWERED,
    SAYS,
    browses,
    expected_classes,
    opened,
    problems,
    shown_classes,
    words_of_problems,
    write_golden,
)  # fmt: skip
from kdzoo.tests.serving import Served, serve, small_models

HOSTILE = "<img src=x onerror='document.title=1'>"
TOKEN = "a-token-of-tests"


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


@browses
@pytest.mark.parametrize(("width", "dark"), [(360, True), (900, False)])
def test_a_dropped_picture_gets_five_classes_of_every_branch(
    browser: Browser, served: Served, models: Path, picture: Path, width: int, dark: bool
) -> None:
    page = opened(browser, served.http, width, dark)
    page.drop("#zone", picture)
    page.until(ALL_ANSWERED)
    assert shown_classes(page) == {
        label: expected_classes(models, target) for label, target in (("branch 1", "1"), ("branch 2", "2"), ("cascade", "cascade"))
    }
    heads = page.value("[...document.querySelectorAll('#results h3')].map(h => h.textContent)")
    assert re.fullmatch(r"cascade, left at exit [123]", heads[2]), heads
    times = page.value("[...document.querySelectorAll('#results .times')].map(p => p.textContent)")
    figures = r"decoding [\d.]+ ms, computing [\d.]+ ms, there and back [\d.]+ ms"
    assert len(times) == 3 and all(re.fullmatch(figures, line) for line in times), times
    bars = page.value("[...document.querySelectorAll('.track span')].map(s => s.offsetWidth / s.parentElement.clientWidth)")
    shares = [float(share.split()[0]) / 100 for classes in shown_classes(page).values() for _, share in classes]
    assert np.allclose(bars, shares, atol=0.02), "the bars are not as long as the numbers say"
    assert page.value("document.documentElement.scrollWidth") == width, "the page is wider than the screen"
    assert page.value("getComputedStyle(document.body).backgroundColor") == ("rgb(28, 32, 38)" if dark else "rgb(255, 255, 255)")
    assert page.value("byId('picture').alt") == "The picture that the branches are asked about: golden.png"
    assert problems(page) == []
    asked = {event["request"]["url"] for event in page.seen("Network.requestWillBeSent")}
    assert all(url.startswith((f"http://{served.http}/", "blob:", "data:")) for url in asked), asked


@browses
@pytest.mark.parametrize("reduced", [True, False])
def test_nothing_moves_for_who_wants_no_motion(page: Browser, picture: Path, reduced: bool) -> None:
    wish = {"name": "prefers-reduced-motion", "value": "reduce" if reduced else "no-preference"}
    page.call("Emulation.setEmulatedMedia", features=[wish])
    page.drop("#zone", picture)
    page.until(ALL_ANSWERED)
    assert page.value("getComputedStyle(document.querySelector('.track span')).animationName") == ("none" if reduced else "grow")


@browses
def test_a_keyboard_alone_is_enough(page: Browser, models: Path, picture: Path) -> None:
    page.call("DOM.enable")
    page.call("Page.setInterceptFileChooserDialog", enabled=True)
    page.press("Tab", 9)
    assert page.value("document.activeElement.id") == "file"
    ring = page.value("getComputedStyle(document.querySelector('#zone label')).outlineStyle")
    assert ring == "solid", "nobody sees where the focus is"
    page.press(" ", 32, " ")
    ends = time.monotonic() + PATIENCE
    while not (chooser := page.seen("Page.fileChooserOpened")):
        assert time.monotonic() < ends, "the space bar opens nothing"
        page.value("1")
    page.call("DOM.setFileInputFiles", files=[str(picture)], backendNodeId=chooser[0]["backendNodeId"])
    page.until(ALL_ANSWERED)
    assert shown_classes(page)["branch 1"] == expected_classes(models, "1")
    page.call("Page.setInterceptFileChooserDialog", enabled=False)
    stops = [page.value("document.activeElement.id")]
    for _ in range(3):
        page.press("Tab", 9)
        stops.append(page.value("document.activeElement.className || document.activeElement.getAttribute('href')"))
    assert stops == ["file", "scroll", "openapi.json", "metrics"]


def paste(page: Browser, data: bytes, name: str, kind: str) -> None:
    encoded = base64.b64encode(data).decode()
    page.value(
        f"(() => {{ const bytes = Uint8Array.from(atob('{encoded}'), c => c.charCodeAt(0)); const clip = new DataTransfer(); "
        f"clip.items.add(new File([bytes], '{name}', {{type: '{kind}'}})); "
        "document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData: clip, bubbles: true})); return 1 })()"
    )


@browses
def test_a_picture_is_pasted_and_what_is_none_is_told_in_words(page: Browser, models: Path, picture: Path) -> None:
    paste(page, b"words", "notes.txt", "text/plain")
    assert page.until(SAYS) == "notes.txt is no picture that can be read (text/plain). It takes JPEG, PNG, WebP, BMP or GIF files."
    paste(page, picture.read_bytes(), "image.png", "image/png")
    page.until(ALL_ANSWERED)
    assert shown_classes(page)["branch 2"] == expected_classes(models, "2")
    paste(page, b"no picture at all", "broken.png", "image/png")
    refused = "The server cannot read this: the picture cannot be decoded: it is none of JPEG, PNG, WEBP, BMP, GIF."
    page.until(f"{SAYS} === '{refused}'")
    assert shown_classes(page) == {}, "what all branches say is said once"
    assert page.value("byId('again').hidden") is False
    page.value("document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData: new DataTransfer(), bubbles: true}))")
    assert page.until(f"{SAYS}.startsWith('There is no picture in what was pasted.')")


@browses
def test_a_busy_server_is_asked_again_and_one_that_is_gone_is_told(page: Browser, picture: Path) -> None:
    page.value(
        """window.told = []; window.first = fetch;
        new MutationObserver(() => told.push(byId("told").textContent)).observe(byId("told"), { childList: true });
        const busy = new Response('{"error": "full"}', { status: 503, headers: { "Retry-After": "1" } });
        let times = 0;
        window.fetch = async (path, options) => (path.includes("classify") && times++ < 1 ? busy : first(path, options)); 1"""
    )
    page.drop("#zone", picture)
    page.until(ALL_ANSWERED)
    assert "The server is busy; it is asked again in 1 s." in page.value("told")
    page.value("window.fetch = async () => { throw new TypeError('Failed to fetch') }; byId('again').click(); 1")
    page.until(f"{SAYS} === 'The server does not answer. Is it still running, and is this machine connected?'")
    page.value("window.fetch = first; byId('again').click(); 1")
    page.until(ALL_ANSWERED)
    assert page.value("byId('again').hidden") is True


@browses
def test_a_branch_that_fails_does_not_hide_the_others(page: Browser, picture: Path) -> None:
    page.value(
        """window.first = fetch;
        const failed = { status: 500, headers: { "Content-Type": "application/json" } };
        window.fetch = async (path, options) =>
          path.includes("-2/classify") ? new Response('{"error": "the runtime failed"}', failed) : first(path, options); 1"""
    )
    page.drop("#zone", picture)
    page.until(f"{SAYS}.startsWith('2 of 3 branches answered.')")
    assert words_of_problems(page) == ["The model failed on this picture: the runtime failed."]
    assert [len(classes) for classes in shown_classes(page).values()] == [5, 0, 5]
    assert page.value("byId('again').hidden") is False


@browses
def test_markup_in_a_label_stays_text(page: Browser) -> None:
    answer = {"predictions": [{"classes": [{"class": HOSTILE, "probability": 0.5}]}], "decode_ms": 1, "infer_ms": 1}
    found = page.value(
        f"(() => {{ const place = byId('results'); place.replaceChildren(...answerOf(cards[0], {json.dumps(answer)}, 1)); "
        "return [place.querySelector('.class').textContent, place.querySelectorAll('img').length, document.title] })()"
    )
    assert found == [HOSTILE, 0, "kdzoo: the branches that are served here"]
    refused = page.value("(() => { try { byId('results').innerHTML = '<b>x</b>'; return 'set' } catch (e) { return e.name } })()")
    assert refused == "TypeError", "the policy lets text become markup"


@browses
def test_a_server_with_a_token_and_a_small_limit(models: Path, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    large = tmp_path / "large.bmp"
    Image.fromarray(np.zeros((700, 700, 3), np.uint8)).save(large)
    assert large.stat().st_size > 2**20
    with serve(models, "--token-file", tmp_path / "token", "--max-body", 1) as served, Browser() as page:
        page.open(f"http://{served.http}/", width=900)
        page.until("!byId('token-form').hidden")
        assert page.value("document.activeElement.id") == "token"
        for token, note in (("wrong", "The server does not take this token."), (TOKEN, "")):
            page.call("Input.insertText", text=token)
            page.press("Enter", 13, "\r")
            if note:
                page.until(f"byId('token-note').textContent === '{note}'")
        page.until("byId('rows').rows.length === 3")
        assert page.value("byId('token-form').hidden") and page.value("byId('token').value") == ""
        kept = page.value(
            "JSON.stringify([document.body.outerHTML, location.href, document.cookie, {...localStorage}, {...sessionStorage}])"
        )
        assert TOKEN not in kept
        page.drop("#zone", picture)
        page.until(ALL_ANSWERED)
        page.drop("#zone", large)
        page.until(f"{SAYS}.startsWith('This is too large for the server: the body has ')")
