from __future__ import annotations

from . import options
from .console import Console, verb


@verb(options.source)
def card(console: Console, source: str | None) -> None:
    """Print the model card of a package or a checkpoint."""
    from ..errors import UsageError
    from ..export.cards.entry_card import entry_card
    from ..export.cards.package_card import package_card
    from ..export.cards.published_figures import published_figures
    from ..export.package import Package
    from ..export.source import resolve

    found = resolve(source, console.say)
    if isinstance(found, Package):
        text = package_card(found.document, found.metrics, found.described, found.labels, found.preprocess.to_dict())
    else:
        manifest = found.manifest
        if not manifest.metrics:
            raise UsageError(
                f"nothing is measured in {found.folder} yet", hint="a card states measured numbers: train an epoch first"
            )
        published = published_figures(manifest.entry, manifest.metrics)
        text = entry_card(manifest, manifest.metrics, published, {path.name for path in found.folder.iterdir()})
    console.result({"card": text}, lambda: text.rstrip())


command = card
