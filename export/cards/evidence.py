"""What stands behind the figures of a package's card, how to make them again, and what they do not say. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..gates import SAME_EXIT
from ..package import Artifact
from ..parity import tolerance
from .markdown import bullets, code, counted, percent

LOCAL_DATA = re.compile(r"(--data[ =])('(?:[^']|'\"'\"')*'|\S+)")  # in a command, as shlex.join writes it
FOLDER = "FOLDER"


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
    for check in dict.fromkeys(m["checker"] for m in found.values() if "checker" in m):
        checked = [f"`{path}`" for path, m in found.items() if m.get("checker") == check]
        lines.append(f"Checked before it was run ({check}): {', '.join(checked)}.")
    lines += _batches(found, artifacts)
    if runtimes := _runtimes(found, artifacts):
        lines.append(f"Machine: {metrics['host']}. Runtimes: {runtimes}.")
    if timed := [row for m in found.values() for row in m.get("latency", [])]:
        lines.append(_calls(timed))
    gates = document["gates"]
    for precision in dict.fromkeys(a.precision for a in artifacts):
        drop, agreement = gates["max_drop"][precision], gates["min_agreement"][precision]
        lines.append(
            f"Gates of {precision}: at most {drop:g} points of top-1 below torch, the same best class on at least "
            f"{100 * agreement:.2f} % of the images"
            + (f", and at least {100 * SAME_EXIT[precision]:g} % leave where they do in torch." if document.get("cascade") else ".")
        )
    return bullets(lines)


def _batches(found: Mapping[str, Mapping[str, Any]], artifacts: Sequence[Artifact]) -> list[str]:
    """The sizes that the files were run in, and how far the logits of one run could be from those of another."""
    held: dict[str, list[str]] = {}
    for artifact in artifacts:
        measured = found[artifact.path]
        if sizes := measured.get("batches_exercised"):
            allowed = tolerance(artifact.precision, measured["parity"]["largest_logit"])
            held.setdefault(f"{', '.join(map(str, sizes))}, held to {allowed:.2g}", []).append(f"`{artifact.path}`")
    if not held:
        return []
    which = "; ".join(f"{', '.join(paths)} in batches of {words}" for words, paths in held.items())
    leaving = " Of a cascade, one image, or one of a hundred, may leave at another exit in another batch."
    cascade = any("exits" in measured for measured in found.values())
    return [
        "Batches: no logit of a batch may be further than this from that of the whole run, as rounding depends on the batch: "
        f"{which}.{leaving if cascade else ''}"
    ]


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
    if not all("passes" in row for row in rows):  # as older packages are
        return (
            f"Latency: {many} calls for each row after a warm-up of a tenth of the time; a call is one batch, from array to array, "
            "and images/s are those of the median call."
        )
    passes = " or ".join(map(str, sorted({row["passes"] for row in rows})))
    return (
        f"Latency: {many} calls for each row after a warm-up; a call is one batch, from array to array. The same images, a sample "
        f"of those above, go through {passes} times, the files of this package in turns; p50 and mean are over the images, each "
        "with the median of its calls, p90 and p99 over all calls, and images/s are those of the mean."
    )


def reproduce(document: Mapping[str, Any]) -> str:
    """The recorded commands, and all that they depended on."""
    provenance = document["provenance"]
    typed = "\n".join([*commands(provenance.get("training", {})), portable(provenance["command"]), "kdzoo reproduce ."])
    explained = "The commands as they were recorded; the last one exports again and compares files and figures with these."
    parts = [explained, code("sh", typed), where_images_lay(provenance), origins(provenance, document["source"])]
    return "\n\n".join(filter(None, parts))


def commands(training: Mapping[str, Any]) -> list[str]:
    """Those of a run, one for every time that it was resumed; the length that was asked for first is not the one that it had."""
    typed = []
    for before in training.get("resumed", []):
        step = f", step {before['step']}" if before["step"] else ""
        typed.append(f"{portable(before['command'])}  # stopped after epoch {before['epoch']}{step}")
    return [*typed, *([portable(training["command"])] if training.get("command") else [])]


def where_images_lay(provenance: Mapping[str, Any]) -> str:
    """What `FOLDER` is, where a recorded command has it; else ""."""
    typed = [provenance.get("command") or "", *commands(provenance), *commands(provenance.get("training", {}))]
    return f"`{FOLDER}` stands for the place of the images." if any(map(LOCAL_DATA.search, typed)) else ""


def portable(command: str) -> str:
    """A recorded command without the place where the images lay."""
    return LOCAL_DATA.sub(rf"\g<1>{FOLDER}", command)


def origins(provenance: Mapping[str, Any], source: Mapping[str, Any] | None = None) -> str:
    """Weights, runs, commits and versions behind a package or, without `source`, an entry."""
    lines = [f"weights of the checkpoint: sha256 `{source['weights_sha256']}`"] if source else []
    training = provenance.get("training", provenance)
    lines.append(f"trained by `{portable(training.get('command', 'unknown'))}` on {training.get('host', 'an unknown host')}")
    for before in training.get("resumed", []):
        lines.append(
            f"resumed after epoch {before['epoch']} (step {before['step']}), having been started to last "
            f"{counted(before['num_epochs'], 'epoch')} by `{portable(before['command'])}`"
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
