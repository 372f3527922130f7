from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from .console import Console, verb

FILE = click.Path(path_type=Path)


@verb(
    click.argument("package", type=FILE),
    click.option("--private-key", required=True, type=FILE, help="An elliptic curve (P-256, P-384, P-521) in a PEM file."),
    click.option("--password", envvar="KDZOO_KEY_PASSWORD", help="Of an encrypted key. [KDZOO_KEY_PASSWORD]"),
    click.option("--certificate", type=FILE, help="Of the key, in a PEM file: a signature by certificate."),
    click.option("--chain", multiple=True, type=FILE, help="Certificates between that one and its root. Repeats."),
)
def sign(
    console: Console, package: Path, private_key: Path, password: str | None, certificate: Path | None, chain: tuple[Path, ...]
) -> None:
    """Sign a package with a private key.

    model.sig is written beside the manifest, which has the sha256 of every file; push and pull carry it.
    """
    from ..export.package import Package
    from ..export.signing import sign as write_signature

    done = write_signature(Package.open(package), private_key, password=password, certificate=certificate, chain=chain)
    console.result(asdict(done), lambda: done.signature)
    console.hint(f"kdzoo verify {package} {'--certificate root.pem' if certificate else '--public-key key.pub'}")


command = sign
