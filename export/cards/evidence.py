"""What stands behind the figures of a package's card, how to make them again, and what they do not say. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..package import Artifact
from .markdown import bullets, code, counted, percent


def how_measured(document: Mapping[str, Any], metrics: Mapping[str, Any], artifacts: Sequence[Artifact]) -> str:
    """Images, machine, runtimes, gates, and what parity means."""
    if not document["verified"]:
        return "**These files were not verified** (`--no-verify`): nothing but sizes and counts is known of them."
    found = {a.path: metrics["artifacts"].get(a.path, {}) for a in artifacts}
    lines = [_accuracy(metrics["reference"], metrics["checkpoint"])]
    compared = next((m["parity"]["n"] for m in found.values() if "parity" in m), None)
    if compared is not None:
        lines.append(
            f"Parity: the same {compared:,} images through the file and through torch in float32; the share of images with the "
            "same best class, and the largest difference between two logits."
        )
    checks = sorted({m["checker"] for m in found.values() if "checker" in m})
    batches = sorted({size for m in found.values() for size in m.get("batches_exercised", [])})
    lines += [f"Graphs: {check}." for check in checks]
    if batches:
        lines.append(f"Batches: run in batches of {', '.join(map(str, batches))}, with the same logits in each.")
    if runtimes := _runtimes(found, artifacts):
        lines.append(f"Machine: {metrics['host']}. Runtimes: {runtimes}.")
    if timed := [row for m in found.values() for row in m.get("latency", [])]:
        lines.append(_calls(timed))
    gates = document["gates"]
    for precision in dict.fromkeys(a.precision for a in artifacts):
        drop, agreement = gates["max_drop"][precision], gates["min_agreement"][precision]
        lines.append(
            f"Gates of {precision}: at most {drop:g} points of top-1 below torch, the same best class on at least "
            f"{100 * agreement:.2f} % of the images."
        )
    return bullets(lines)


def _accuracy(reference: Mapping[str, Any] | None, trained: Mapping[str, Any] | None) -> str:
    if reference is not None:
        return (
            f"Accuracy is that of the emitted file itself, on the {counted(reference['n'], 'image')} of the {reference['split']} "
            f"split; torch has {percent(reference['top1'])} top-1 and {percent(reference['top5'])} top-5 on them."
        )
    if trained is None:
        return "Accuracy was not measured: no labelled images were at hand."
    return (
        "Accuracy of the files was **not measured again**, as the test images were not at hand (`--data` names them); "
        f"the checkpoint states {percent(trained['top1'])} top-1 on {trained['n']:,} images of the {trained['split']} split."
    )


def _runtimes(found: Mapping[str, Mapping[str, Any]], artifacts: Sequence[Artifact]) -> str:
    """What ran the measured files, with versions, devices and threads."""
    words: dict[str, None] = {}
    for artifact in (a for a in artifacts if "parity" in found[a.path]):
        ran = found[artifact.path].get("runtime")
        if ran is None:
            words[f"{artifact.runtime} {artifact.runtime_version}".strip()] = None
        else:
            threads = f", {counted(ran['threads'], 'thread')}" if ran["threads"] else ""
            words[f"{ran['runtime']} {ran['version']} ({ran['device']}{threads})"] = None
    return ", ".join(words)


def _calls(rows: Sequence[Mapping[str, Any]]) -> str:
    """How a latency came about."""
    calls = sorted(row["calls"] for row in rows)
    many = f"{calls[0]:,}" if calls[0] == calls[-1] else f"{calls[0]:,} to {calls[-1]:,}"
    return (
        f"Latency: {many} calls for each row after a warm-up of a tenth of the time; a call is one batch, from array to array, and "
        "images/s are those of the median call."
    )


def reproduce(document: Mapping[str, Any]) -> str:
    """The recorded commands, and all that they depended on."""
    provenance = document["provenance"]
    training = provenance.get("training", {})
    typed = [*(before["command"] for before in training.get("resumed", [])), training.get("command"), provenance["command"]]
    commands = [*filter(None, typed), "kdzoo reproduce ."]
    explained = "The commands as they were recorded; the last one exports again and compares files and figures with these."
    return "\n\n".join([explained, code("sh", "\n".join(commands)), origins(provenance, document["source"])])


def origins(provenance: Mapping[str, Any], source: Mapping[str, Any] | None = None) -> str:
    """Weights, runs, commits and versions behind a package or, without `source`, an entry."""
    lines = [f"weights of the checkpoint: sha256 `{source['weights_sha256']}`"] if source else []
    training = provenance.get("training", provenance)
    lines.append(f"trained by `{training.get('command', 'unknown')}` on {training.get('host', 'an unknown host')}")
    for before in training.get("resumed", []):
        lines.append(
            f"resumed after epoch {before['epoch']} (step {before['step']}), having been started to last "
            f"{before['num_epochs']} epochs by `{before['command']}`"
        )
    if source and source.get("seed") is not None:
        lines.append(f"seed of the training: {source['seed']}")
    lines.append(f"commit of the training code: `{training.get('git_commit') or 'not a checkout'}`")
    if source:
        lines.append(f"commit of the exporting code: `{provenance.get('git_commit') or 'not a checkout'}`")
        if trained_with := training.get("versions"):
            lines.append(f"versions of the training: {versions(trained_with)}")
    return bullets([*lines, f"versions: {versions(provenance['versions'])}"])


def versions(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(found.items()))


def limits(
    document: Mapping[str, Any],
    metrics: Mapping[str, Any],
    artifacts: Sequence[Artifact],
    num_classes: int,
    preprocess: Mapping[str, Any],
) -> str:
    """What the figures do not say, each line out of the data."""
    found = {a.path: metrics["artifacts"].get(a.path, {}) for a in artifacts}
    epochs, published = document["source"]["epochs"], document.get("published") or {}
    lines = [
        f"It knows {counted(num_classes, 'class')} and gives one of them to every picture, whatever that shows; it was tested on "
        f"pictures of {document['dataset']} only. The probabilities are not calibrated.",
        f"Every picture is brought to {preprocess['width']} x {preprocess['height']} pixels; finer detail is lost.",
    ]
    if published.get("epochs") and published["epochs"] != epochs:
        lines.append(f"The checkpoint was trained for {counted(epochs, 'epoch')}, those of the paper for {published['epochs']}.")
    if any("latency" in m for m in found.values()):
        lines.append(f"The latencies are those of {metrics['host']}; another machine may even rank the files otherwise.")
    if engines := [a for a in artifacts if a.compute_capability]:
        unrun = [a for a in engines if "not_run" in found.get(a.path, {})]
        lines.append(
            "An engine runs on GPUs of its compute capability and with its version of the runtime only"
            + (f"; built and not run here: {counted(len(unrun), 'engine')}." if unrun else ".")
        )
    if document.get("cascade"):
        lines.append(
            "In one file a batch goes on until its least sure image has left, so that it saves most in batches of one; where "
            "images leave depends on the images."
        )
    for path, parity in ((p, m["parity"]) for p, m in found.items() if "parity" in m and m["parity"]["agreement"] < 1):
        lines.append(f"`{path}` gives another best class than torch to {100 * (1 - parity['agreement']):.2f} % of the images.")
    dominated = [f"`{path}`" for path, m in found.items() if "dominated_by" in m]
    if dominated:
        lines.append(f"There is a better file than {', '.join(dominated)} in this package, see *Artifacts*.")
    return bullets(lines)
