"""Write the cards of the bundled entries again, out of the manifests and metrics beside them.

python tools/cards.py          writes model_cards/<entry>/README.md
"""

from __future__ import annotations

from kdzoo.export.cards.entry_card import entry_card
from kdzoo.export.cards.published_figures import published_figures
from kdzoo.zoo.catalog import CARDS
from kdzoo.zoo.files import read_json, write_bytes
from kdzoo.zoo.manifest import MANIFEST, Manifest


def main() -> None:
    for folder in sorted(path.parent for path in CARDS.glob(f"*/{MANIFEST}")):
        targets = read_json(folder / "metrics.json")["targets"]
        card = entry_card(
            Manifest.read(folder), targets, published_figures(folder.name, targets), {p.name for p in folder.iterdir()}
        )
        write_bytes(folder / "README.md", card.encode())
        print(folder / "README.md")


if __name__ == "__main__":
    main()
