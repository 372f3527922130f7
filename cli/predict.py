from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .console import Console, table, verb


@verb(
    click.argument("source"),
    click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path)),
    click.option("--branch", "-b", help="Target of a checkpoint; a package has one. [target]"),
    click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Classes per image."),
)
def predict(console: Console, source: str, images: tuple[Path, ...], branch: str | None, top: int) -> None:
    """Classify images."""
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
    rows = [
        (r["image"] if i == 0 else "", c["class"], f"{c['probability']:.4f}") for r in results for i, c in enumerate(r["classes"])
    ]
    console.result(results, lambda: table(("image", "class", "probability"), rows))


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
