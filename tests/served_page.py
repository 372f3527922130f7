"""The page of a server in a browser, for the tests of it: how it is opened, and what it shows.

Import it as `kdzoo.tests.served_page`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdzoo.tests.browser import CHROMIUM, Browser
from kdzoo.tests.serving import package_in

browses = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
SAYS = "byId('told').textContent"
ALL_ANSWERED = f"{SAYS}.startsWith('All 3 branches answered.')"


def opened(browser: Browser, http: str, width: int = 900, dark: bool = False) -> Browser:
    """The page of the server at `http`, which has said what it serves."""
    browser.open(f"http://{http}/", width=width, dark=dark)
    browser.value("shown.then(() => 1)")
    return browser


def write_golden(models: Path, path: Path) -> Path:
    """The first golden image as a file: what the branches say of it is known."""
    images, _ = package_in(models, "1").golden()
    Image.fromarray(images[0]).save(path)
    return path


def shown_classes(browser: Browser) -> dict[str, list[list[str]]]:
    """By branch, every class with its share."""
    script = (
        "Object.fromEntries([...document.querySelectorAll('#results article')].map(a => [a.getAttribute('aria-label'), "
        "[...a.querySelectorAll('li')].map(l => [l.querySelector('.class').textContent, l.querySelector('.share').textContent])]))"
    )
    return browser.value(script)


def expected_classes(models: Path, target: str) -> list[list[str]]:
    """The best five of the first golden image, from the logits that torch gave when the package was made."""
    package = package_in(models, target)
    logits = package.golden()[1][0].astype(np.float64)
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    best = np.argsort(-shares, kind="stable")[:5]
    return [[package.labels[k], f"{100 * shares[k]:.1f} %"] for k in best]


def problems(browser: Browser) -> list[dict[str, Any]]:
    return browser.seen("Log.entryAdded", "Network.loadingFailed", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")


def words_of_problems(browser: Browser) -> list[str]:
    """What is said where a branch gave no answer."""
    return browser.value("[...document.querySelectorAll('#results .problem')].map(p => p.textContent)")
