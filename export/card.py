"""Model cards, written from JSON and nothing else: of a package (`metrics.json`) and of a bundled entry. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..zoo.manifest import Manifest
from .package import Artifact


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"


def in_order(targets: Iterable[str]) -> list[str]:
    """`target`, the branches by number, `fused`, `ensemble`."""
    rank = {"target": 0, "fused": 2, "ensemble": 3}
    return sorted(targets, key=lambda name: (rank.get(name, 1), len(name), name))


def front_matter(entry: str, dataset: str, tags: Iterable[str]) -> str:
    """The YAML head that the Hugging Face Hub reads."""
    lines = ["---", "library_name: kdzoo", "pipeline_tag: image-classification", f"model_name: {entry}"]
    lines += ["tags:", *(f"- {tag}" for tag in ("knowledge-distillation", *tags)), "datasets:", f"- {dataset}", "---"]
    return "\n".join(lines)


def package_card(document: dict[str, Any], metrics: dict[str, Any], artifacts: Sequence[Artifact], labels: Sequence[str]) -> str:
    """README of a package, out of its manifest and its metrics."""
    name = f"{document['entry']}-{document['target']}"
    student, reference, trained = metrics["student"], metrics["reference"], metrics["checkpoint"]
    parts = [
        front_matter(name, document["dataset"], [document["method"], document["backbone"]]),
        f"# {name}",
        f"Target `{document['target']}` of a {document['backbone']} trained with {document['method']} on {document['dataset']}: "
        f"{len(labels)} classes, {student['params']:,} parameters, {student['macs']:,} multiply-adds per image. "
        f"Cut from a checkpoint of {document['source']['epochs']} epochs; "
        f"{len(document['tensors']['kept'])} tensors kept, {len(document['tensors']['dropped'])} dropped.",
        "## Files",
        table(
            ("file", "precision", "bytes", "runs on", "top-1", "same argmax as torch", "largest logit difference"),
            [_file_row(a, metrics["artifacts"].get(a.path, {})) for a in artifacts],
        ),
        _evidence(document, reference, trained),
    ]
    latencies = [
        (
            a.path,
            str(row["batch"]),
            f"{row['p50_ms']:.2f}",
            f"{row['p90_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            f"{row['images_per_s']:,.0f}",
        )
        for a in artifacts
        for row in metrics["artifacts"].get(a.path, {}).get("latency", [])
    ]
    if latencies:
        header = ("file", "batch", "p50 ms", "p90 ms", "p99 ms", "images/s")
        parts += ["## Latency", table(header, latencies), f"Measured on {metrics['host']}, all cores."]
    not_run = [f"- `{a.path}`: {m['not_run']}" for a in artifacts if "not_run" in (m := metrics["artifacts"].get(a.path, {}))]
    if not_run:
        parts += ["## Not measured", "\n".join(not_run)]
    parts += ["## Use", _usage(document, artifacts), "## Provenance", _provenance(document["provenance"], document["source"])]
    return "\n\n".join(parts) + "\n"


def _file_row(artifact: Artifact, measured: dict[str, Any]) -> tuple[str, ...]:
    gpu = f", compute capability {artifact.compute_capability}" if artifact.compute_capability else ""
    parity, accuracy = measured.get("parity"), measured.get("accuracy")
    return (
        f"`{artifact.path}`",
        artifact.precision,
        f"{artifact.bytes:,}",
        f"{artifact.runtime} {artifact.runtime_version}{gpu}",
        percent(accuracy["top1"]) if accuracy else "not measured",
        f"{100 * parity['agreement']:.2f} % of {parity['n']:,}" if parity else "not measured",
        f"{parity['max_abs_diff']:.2g}" if parity and parity["max_abs_diff"] is not None else "not measured",
    )


def _evidence(document: dict[str, Any], reference: dict[str, Any] | None, trained: dict[str, Any] | None) -> str:
    if not document["verified"]:
        return "**These files were not verified** (`--no-verify`)."
    if reference is not None:
        return (
            f"Accuracy is that of the emitted file itself, on the {reference['n']:,} images of the {reference['split']} split; "
            f"torch has {percent(reference['top1'])} top-1 and {percent(reference['top5'])} top-5 on them."
        )
    if trained is None:
        return "Accuracy was not measured: no labelled images were at hand."
    return (
        "Accuracy of the files was **not measured again**, as the test images were not at hand (`--data` names them); "
        f"the checkpoint states {percent(trained['top1'])} top-1 on {trained['n']:,} images of the {trained['split']} split."
    )


def _usage(document: dict[str, Any], artifacts: Sequence[Artifact]) -> str:
    onnx = next((a for a in artifacts if a.format == "onnx"), None)
    if onnx is None:
        return "`kdzoo info .` describes this folder."
    what = "uint8 `N H W C`, as a camera or a decoder gives it" if onnx.input.dtype == "uint8" else "normalised float32 `N C H W`"
    return (
        f"```python\nimport onnxruntime\n\nsession = onnxruntime.InferenceSession({onnx.path!r})\n"
        f'logits = session.run(["logits"], {{"image": images}})[0]\n```\n\n'
        f"`images` is {what}, shape {list(onnx.input.shape)}; `logits` is float32 {list(onnx.output.shape)}. Names of the classes: "
        "`labels.txt`. `golden/` holds eight images and their logits to prove a pipeline with; `kdzoo verify .` does it."
    )


def _provenance(provenance: dict[str, Any], source: dict[str, Any] | None = None) -> str:
    lines = [f"- weights of the checkpoint: sha256 `{source['weights_sha256']}`"] if source else []
    training = provenance.get("training", provenance)
    lines.append(f"- trained by `{training.get('command', 'unknown')}` on {training.get('host', 'an unknown host')}")
    for before in training.get("resumed", []):
        lines.append(
            f"- resumed after epoch {before['epoch']} (step {before['step']}), having been started to last "
            f"{before['num_epochs']} epochs by `{before['command']}`"
        )
    lines.append(f"- commit of the training code: `{training.get('git_commit') or 'not a checkout'}`")
    versions = ", ".join(f"{name} {version}" for name, version in sorted(provenance["versions"].items()))
    return "\n".join([*lines, f"- versions: {versions}"])


def entry_card(manifest: Manifest, targets: dict[str, dict[str, Any]], published: dict[str, Any]) -> str:
    """README of a bundled entry, out of its manifest, its measured targets and the published figures."""
    recipe, figures = manifest.recipe, published.get("published", {})
    rows = []
    for target in in_order(targets):
        measured = targets[target]
        paper = figures.get(target)
        gap = "-" if paper is None else f"{measured['top1'] - paper:+.2f}"
        rows.append((
            f"`{target}`", f"{measured['params']:,}", f"{measured['macs']:,}", percent(measured["top1"]),
            percent(measured.get("top5")), percent(paper), gap,
        ))  # fmt: skip
    some = next(iter(targets.values()))
    schedule, length = recipe["schedule"], f"{manifest.epochs} epochs"
    if manifest.epochs < recipe["epochs"]:
        length = f"**The run is not finished**: {manifest.epochs} of {recipe['epochs']} epochs"
    return "\n\n".join([
        front_matter(manifest.entry, manifest.dataset, [manifest.method, manifest.backbone]),
        f"# {manifest.entry}",
        f"{manifest.method} on {manifest.backbone}, {manifest.dataset}: one training run, {len(targets)} deployable targets. "
        f"Top-1 and top-5 are measured on the {some['n']:,} images of the {some['split']} split, with these very weights "
        f"(stored as {manifest.weights_dtype}), after epoch {some.get('epoch', manifest.epochs)} of {recipe['epochs']}; "
        "no epoch was chosen by its test accuracy.",
        table(("target", "parameters", "multiply-adds", "top-1", "top-5", "published top-1", "points from the paper"), rows),
        "![learning curve](curve.png)",
        "## How far from the paper, and why",
        _distance(manifest, targets, published),
        "## Training",
        f"{length}, batch {recipe['batch_size']}, SGD with learning rate {recipe['optimizer']['lr']}, "
        f"{schedule['kind']} schedule, {schedule['warmup_epochs']:g} warm-up epochs, weight decay "
        f"{recipe['optimizer']['weight_decay']}, seed {recipe['seed']}. "
        + (f"{recipe['holdout']:,} training images were held out. " if recipe.get("holdout") else "")
        + "`manifest.json` holds the whole recipe, `log.jsonl` every epoch.",
        "## Use",
        f"```\nkdzoo export {manifest.entry} --branch target --format onnx\n```",
        "## Provenance",
        _provenance(manifest.provenance),
    ]) + "\n"  # fmt: skip


def _distance(manifest: Manifest, targets: dict[str, dict[str, Any]], published: dict[str, Any]) -> str:
    figures = published.get("published", {})
    compared = [t for t in in_order(targets) if t in figures]
    if not compared:
        return "The paper publishes no figures for this entry."
    target, epochs = compared[0], published.get("published_epochs")
    gap = targets[target]["top1"] - figures[target]
    text = (
        f"Target `{target}` has {percent(targets[target]['top1'])}, the paper {percent(figures[target])}: "
        f"**{abs(gap):.2f} points {'below' if gap < 0 else 'above'}** ({published.get('source', published.get('paper', ''))})."
    )
    if epochs and manifest.epochs != epochs:
        text += (
            f" This run is **{manifest.epochs} epochs long, the paper's {epochs}**: it shows the method at work, "
            "and does not reproduce the paper. `kdzoo train` with the recipe of this entry, unchanged, runs the paper's schedule."
        )
    return text
