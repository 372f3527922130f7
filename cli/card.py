from __future__ import annotations

from . import options
from .console import Console, verb


@verb(options.source)
def card(console: Console, source: str | None) -> None:
    """Print the model card of a package or a checkpoint."""
    from ..errors import UsageError
    from ..export.card import entry_card, package_card
    from ..export.package import Package
    from ..export.source import resolve
    from ..zoo.catalog import published_entries

    found = resolve(source, console.say)
    if isinstance(found, Package):
        text = package_card(found.document, found.metrics, found.described, found.labels)
    else:
        manifest = found.manifest
        if not manifest.metrics:
            raise UsageError(
                f"nothing is measured in {found.folder} yet", hint="a card states measured numbers: train an epoch first"
            )
        text = entry_card(manifest, manifest.metrics, published_entries().get(manifest.entry, {}))
    console.result({"card": text}, lambda: text.rstrip())


command = card
