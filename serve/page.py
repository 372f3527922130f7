"""The page at `/`: one document that needs nothing else, and the policy under which a browser runs what is in it. Torch-free.

It lies in the folder `page` as one file for each thing that it does; they are put into `index.html` where it names them.
"""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

FOLDER = Path(__file__).parent / "page"
NAMED = re.compile(r'<link rel="stylesheet" href="(?P<style>[a-z]+\.css)">|<script src="(?P<script>[a-z]+\.js)"></script>')
REST = (
    "default-src 'none'",
    "connect-src 'self'",
    "img-src 'self' blob: data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",  # no text can become markup
    "trusted-types 'none'",
)


@dataclass(frozen=True)
class Page:
    """policy: the value of the header Content-Security-Policy, with the hash of every style and script of `html`."""

    html: bytes
    policy: str


@cache
def read_page() -> Page:
    """The document as it goes over the wire."""
    hashes: dict[str, list[str]] = {"style": [], "script": []}

    def put_in(named: re.Match[str]) -> str:
        kind = "style" if named["style"] else "script"
        text = "\n" + (FOLDER / named[kind]).read_text(encoding="utf-8")
        hashes[kind].append(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'")
        return f"<{kind}>{text}</{kind}>"

    html = NAMED.sub(put_in, (FOLDER / "index.html").read_text(encoding="utf-8"))
    run = (f"{kind}-src {' '.join(found)}" for kind, found in hashes.items())
    return Page(html.encode(), "; ".join((*REST, *run)))
