from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import Console, table, verb

if TYPE_CHECKING:
    from collections.abc import Sequence


@verb(
    click.argument("words", nargs=-1, metavar="SOURCE IMAGES..."),
    click.option(
        "--url", help="Let a server classify: there is no SOURCE then, as in kdzoo predict --url http://localhost:8000 a.jpg"
    ),
    click.option("--branch", "-b", help="Target of a checkpoint, or of what a server answers for; a package has one. [target]"),
    click.option("--model", help="Of a server that has several. [the only one, or the only entry]"),
    click.option("--prefer", help="accuracy, latency, or limits as in max-latency=2ms, by which a server picks the branch."),
    click.option(
        "--token-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Holds the token that the server asks for. [KDZOO_SERVE_TOKEN]",
    ),
    click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Classes per image."),
)
def predict(console: Console, words: tuple[str, ...], branch: str | None, top: int, **server: Any) -> None:
    """Classify images.

    With --url a server does it, and every word is an image.
    """
    if server["url"] is not None:
        if not words:
            raise click.UsageError("Missing argument 'IMAGES...'.")
        results = by_server(console, words, branch, top, **server)
    else:
        stray = [f"--{name.replace('_', '-')}" for name, value in server.items() if value is not None]
        if stray:
            raise click.UsageError(f"only with --url: {', '.join(stray)}.")
        if len(words) < 2:
            raise click.UsageError("Missing argument 'IMAGES...'." if words else "Missing argument 'SOURCE'.")
        results = by_source(console, words[0], [Path(word) for word in words[1:]], branch, top)
    rows = [
        (r["image"] if i == 0 else "", c["class"], f"{c['probability']:.4f}") for r in results for i, c in enumerate(r["classes"])
    ]
    console.result(results, lambda: table(("image", "class", "probability"), rows))


def by_server(
    console: Console,
    images: Sequence[str],
    branch: str | None,
    top: int,
    url: str,
    model: str | None,
    prefer: str | None,
    token_file: Path | None,
) -> list[dict[str, Any]]:
    """Uploads the images."""
    from ..serve.client.client import Client
    from ..serve.start import read_token

    with Client(url, model, read_token(token_file)) as client:
        found = client.classify(list(images), branch, prefer, top)
    console.say(f"{url} answers with {', '.join(dict.fromkeys(each.model for each in found))}")
    return [
        {
            "image": image,
            "classes": [{"class": c.name, "index": c.index, "probability": c.probability} for c in prediction.classes],
        }
        for image, prediction in zip(images, found, strict=True)
    ]


def by_source(console: Console, source: str, images: Sequence[Path], branch: str | None, top: int) -> list[dict[str, Any]]:
    """Computes them here."""
    import numpy as np

    from ..errors import UsageError
    from ..export.package import LABELS, PREPROCESS, Package
    from ..export.source import resolve
    from ..zoo.checkpoint import check_file

    found = resolve(source, console.say)
    if isinstance(found, Package):
        if branch not in (None, found.document["target"]):
            raise UsageError(
                f"{found.folder} is a package: it holds branch {found.document['target']} only", hint="leave --branch out"
            )
        for name in (PREPROCESS, LABELS):
            check_file(found.folder / name, found.document["files"].get(name))
    preprocess = found.preprocess if isinstance(found, Package) else found.manifest.preprocess
    labels = found.labels if isinstance(found, Package) else list(found.manifest.classes)
    pixels = np.stack([preprocess.read(path) for path in images])
    logits = package_logits(found, pixels) if isinstance(found, Package) else checkpoint_logits(found, branch or "target", pixels)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    results: list[dict[str, Any]] = []
    for path, row in zip(images, probabilities, strict=True):
        best = np.argsort(-row)[:top]
        classes = [{"class": labels[i], "index": int(i), "probability": round(float(row[i]), 6)} for i in best]
        results.append({"image": str(path), "classes": classes})
    return results


def package_logits(package: Any, pixels: Any) -> Any:
    """By the first ONNX file of the package; torch is not imported."""
    from ..export.measure import why_not_run
    from ..export.outputs import run_file
    from ..zoo.checkpoint import check_file

    runnable = [a for a in package.artifacts if a.format == "onnx" and not why_not_run(package.folder, a)]
    artifact = runnable[0] if runnable else package.artifact("onnx", "fp32")
    check_file(package.folder / artifact.path, package.document["files"].get(artifact.path))
    return run_file(package.folder, artifact, pixels, package.preprocess)


def checkpoint_logits(checkpoint: Any, branch: str, pixels: Any) -> Any:
    from ..errors import UsageError
    from ..export.exporter import cut
    from ..export.outputs import torch_logits
    from ..zoo.target import SEVERAL, Target

    target = Target.parse(branch)
    if target.word in SEVERAL:
        raise UsageError(f"'{target}' answers as the file that it is exported to", hint=f"kdzoo export --branch {target}")
    student, _, _ = cut(checkpoint, target)
    return torch_logits(student, checkpoint.manifest.preprocess, pixels)


command = predict
