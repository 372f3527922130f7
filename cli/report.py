from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options
from .console import Console, verb

if TYPE_CHECKING:
    from ..train.report.build import Images
    from ..zoo.checkpoint import Checkpoint


@verb(
    click.argument("run", required=False),
    options.data,
    click.option("--output", "-o", type=click.Path(path_type=Path), help="The page. [RUN/report.html]"),
    click.option(
        "--samples", type=click.IntRange(min=64), default=2000, show_default=True, help="Test images for distances and correlation."
    ),
    click.option("--force", is_flag=True, help="Replace a page that is there."),
    options.device,
)
def report(
    console: Console, run: str | None, data: Path | None, output: Path | None, samples: int, force: bool, device: str
) -> None:
    """Draw what a run learnt on one HTML page."""
    from ..errors import OutputError
    from ..export.source import resolve_checkpoint
    from ..zoo.files import write_bytes

    checkpoint = resolve_checkpoint(run, console.say)
    path = output or default_page(checkpoint)
    if path.is_dir():
        raise OutputError(f"{path} is a folder", hint="name a file with --output, as in report.html")
    if path.exists() and not force:
        raise OutputError(f"{path} exists", hint="replace it with --force, or name another file with --output")
    checkpoint.verify()  # a damaged file is told before missing images are
    images = find_images(console, checkpoint, data)

    from ..train.report.build import build_report

    found = build_report(checkpoint, images, samples=samples, device=options.pick_device(device), say=console.say)
    content = found.html.encode()
    write_bytes(path, content)
    document = {"report": str(path), "bytes": len(content), "images": images.words, "sections": found.sections}
    console.result(document, lambda: "\n".join([str(path), *(f"  {key}: {state}" for key, state in found.sections.items())]))
    console.hint(f"open {path} in a browser")


def default_page(checkpoint: Checkpoint) -> Path:
    """In the folder of the run; beside you for a checkpoint that is part of none."""
    folder = checkpoint.folder
    if (folder.parent / "recipe.yaml").is_file():
        return folder.parent / "report.html"
    return Path(f"{checkpoint.manifest.entry}-report.html")


def find_images(console: Console, checkpoint: Checkpoint, data: Path | None) -> Images:
    """The test split where it is at hand or named, else the few images that travel with the weights, else none."""
    from ..errors import DataError
    from ..train.report.build import Images
    from ..zoo.checkpoint import SAMPLES
    from ..zoo.datasets import find_data, open_split

    manifest = checkpoint.manifest
    try:
        path = find_data(manifest.dataset, data)
    except DataError as error:
        if data is not None:
            raise
        console.say(f"{error.what}; {error.hint}")
        if SAMPLES not in manifest.files:
            return Images(None, f"the images of {manifest.dataset} were not at hand, and none travel with this checkpoint")
        samples = checkpoint.samples()
        return Images(samples, f"the {len(samples)} test images that travel with the checkpoint (the data set was not at hand)")
    split = open_split(path, "test", manifest.preprocess, dataset=manifest.dataset, lazy=True)
    return Images(split, f"the {len(split):,} test images of {manifest.dataset}")


command = report
