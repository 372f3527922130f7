"""The tables of a package's card: its files, its outputs or exits, the published figures beside ours, the latencies. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..package import Artifact
from .markdown import bullets, counted, percent, table

UNIT_RULE = (
    "Unit rule: parameters are all trained numbers (convolutions, linear layers, scale and shift of BatchNorm; no running "
    "statistics); multiply-adds (MACs) are those of convolutions and linear layers for one image. One multiply-add is two FLOPs."
)
DBFSKD_RULE = (
    "This paper counts multiply-adds by the rule of thop 0.0.31, which adds 2 per element of BatchNorm, 1 per bias of a "
    "convolution and the window + 1 per average that is pooled; ours beside it are counted so, too."
)
FIGURE_NAMES = {"top1": "top-1", "params_m": "parameters", "macs_m": "multiply-adds"}


def artifact_section(artifacts: Sequence[Artifact], metrics: Mapping[str, Any]) -> str:
    """A row for every file; below it why a file was not run, which file is better, and what was kept in float32."""
    found = metrics["artifacts"]
    header = ("file", "precision", "bytes", "runs on", "top-1", "same argmax as torch", "largest logit difference", "p50 at the "
              "smallest batch")  # fmt: skip
    notes = []
    for artifact in artifacts:
        measured = found.get(artifact.path, {})
        notes += [f"`{artifact.path}`: {note}" for note in _notes(artifact, measured)]
    parts = [table(header, [_row(a, found.get(a.path, {})) for a in artifacts]), bullets(notes)]
    return "\n\n".join(filter(None, parts))


def _row(artifact: Artifact, measured: Mapping[str, Any]) -> tuple[str, ...]:
    parity, accuracy, latency = (measured.get(key) for key in ("parity", "accuracy", "latency"))
    return (
        f"`{artifact.path}`",
        artifact.precision,
        f"{artifact.bytes:,}",
        runs_on(artifact),
        f"{percent(accuracy['top1'])} of {accuracy['n']:,}" if accuracy else "not measured",
        f"{100 * parity['agreement']:.2f} % of {parity['n']:,}" if parity else "not measured",
        difference(parity),
        f"{latency[0]['p50_ms']:.2f} ms" if latency else "-",
    )


def difference(parity: Mapping[str, Any] | None) -> str:
    """The largest difference between two logits."""
    if parity is None:
        return "not measured"
    return "not finite" if parity["max_abs_diff"] is None else f"{parity['max_abs_diff']:.2g}"


def runs_on(artifact: Artifact) -> str:
    gpu = f", compute capability {artifact.compute_capability}" if artifact.compute_capability else ""
    return f"{artifact.runtime} {artifact.runtime_version}".strip() + gpu


def _notes(artifact: Artifact, measured: Mapping[str, Any]) -> list[str]:
    details, notes = artifact.details, []
    if "not_run" in measured:
        notes.append(measured["not_run"])
    if "dominated_by" in measured:
        batch = measured["latency"][0]["batch"]
        notes.append(f"`{measured['dominated_by']}` is at least as accurate and at least as fast at batch {batch}")
    if artifact.format == "onnx" and artifact.runtime != "onnxruntime" and "parity" in measured:
        notes.append(f"made for {artifact.runtime}; its figures here are those that onnxruntime computes with it")
    if parts := [f"`{part['path']}`" for part in details.get("parts", [])]:
        notes.append(
            f"a file for each exit, {', '.join(parts)}; the bytes are those of all. An image that is sure leaves its batch"
        )
    if "weights" in details:
        notes.append(f"its weights are in `{details['weights']}`, which has to lie beside it")
    if "grid" in details:
        calibration = details["calibration"]
        notes.append(
            f"{details['grid']} activations, for {artifact.runtime}; ranges by `{calibration['method']}` over "
            f"{calibration['images']:,} images of the {calibration['split']} split (seed {calibration['seed']}); "
            f"{counted(details['quantised_layers'], 'layer')} in eight bits"
        )
    if kept := details.get("kept_float32"):
        notes.append(f"computed in float32: {', '.join(f'`{name}`' for name in kept)}")
    return notes


def output_section(artifacts: Sequence[Artifact], metrics: Mapping[str, Any]) -> str:
    """Files with several outputs, output by output; "" where there are none."""
    rows = []
    for path, measured in ((a.path, metrics["artifacts"].get(a.path, {})) for a in artifacts):
        if "outputs" not in measured:
            continue
        for name, output in {"logits": measured, **measured["outputs"]}.items():
            accuracy, parity = output.get("accuracy"), output["parity"]
            rows.append((
                f"`{path}`", f"`{name}`", percent(accuracy["top1"]) if accuracy else "not measured",
                f"{100 * parity['agreement']:.2f} %", difference(parity),
            ))  # fmt: skip
    return table(("file", "output", "top-1", "same argmax as torch", "largest logit difference"), rows) if rows else ""


def exit_section(document: Mapping[str, Any], artifacts: Sequence[Artifact], metrics: Mapping[str, Any]) -> str:
    """The exits of a cascade: found on held-out images, then measured file by file; "" for anything else."""
    cascade = document.get("cascade")
    if not cascade:
        return ""
    last = len(cascade["shares"])
    rows = [
        (str(k), f"{100 * share:.1f} %", f"{cascade['values'][k - 1]:.4f}" if k < last else "whoever is left")
        for k, share in enumerate(cascade["shares"], start=1)
    ]
    whole, mean = metrics["student"]["macs"], cascade["macs"]
    parts = [
        f"An image leaves at the first exit that is at least as sure of its answer as the threshold. The thresholds were found on "
        f"{cascade['n']:,} held-out training images: {mean:,.0f} multiply-adds for an image in the mean, {whole:,} for one that "
        f"goes through all; {cascade['loss']:+.2f} points of top-1 lost there, at most {cascade['bound']:.2f} with 95 % certainty "
        f"({cascade['limit']:g} was allowed).",
        table(("exit", "share of the held-out images", "leaves with a confidence of at least"), rows),
    ]
    measured = [
        (f"`{a.path}`", number, f"{100 * share:.1f} %", f"{exits['p50_ms'][number]:.2f} ms", f"{100 * exits['agreement']:.2f} %")
        for a in artifacts
        if (exits := metrics["artifacts"].get(a.path, {}).get("exits"))
        for number, share in exits["shares"].items()
    ]
    if measured:
        header = ("file", "exit", "share of the measured images", "p50 of one that leaves there", "leave as in torch (all exits)")
        parts.append(table(header, measured))
    return "\n\n".join(parts)


def latency_section(artifacts: Sequence[Artifact], metrics: Mapping[str, Any]) -> str:
    """Every measured batch size of every file; "" where nothing was timed."""
    rows = [
        (
            a.path,
            str(row["batch"]),
            f"{row['mean_ms']:.2f}",
            f"{row['p50_ms']:.2f}",
            f"{row['p90_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            f"{row['images_per_s']:,.0f}",
        )
        for a in artifacts
        for row in metrics["artifacts"].get(a.path, {}).get("latency", [])
    ]
    return table(("file", "batch", "mean ms", "p50 ms", "p90 ms", "p99 ms", "images/s"), rows) if rows else ""


def published_section(published: Mapping[str, Any], target: str, ours: Mapping[str, Any], what: str) -> str:
    """Published beside ours for one target.

    Args:
        published: `published_figures`, empty where there are none.
        ours: `top1` or None, `params`, `macs`, `macs_dbfskd`. what: what our accuracy is that of.
    """
    figures = published.get("targets", {}).get(target, {})
    by_paper = published.get("counting") == "dbfskd" and "macs_m" in figures
    counts = {"params_m": ours["params"], "macs_m": ours["macs_dbfskd" if by_paper else "macs"]}
    rows = [_top1_row(figures.get("top1"), ours.get("top1"), what)]
    for figure, count in counts.items():
        printed = figures.get(figure)
        if printed is None:
            rows.append((FIGURE_NAMES[figure], "not published", "-", f"{count:,}", "-"))
            continue
        source = f"millions, {printed['source']}"
        if why := printed.get("not_reproducible"):
            source += f"; cannot be reproduced: {why}"
        gap = f"{count / 1e6 - printed['value']:+.4f} M"
        rows.append((FIGURE_NAMES[figure], f"{printed['value']:g} M", source, f"{count:,}", gap))
    header = ("figure", "published", "unit and source", "measured or counted here", "difference")
    heading = f"{published['paper']} {published['url']}".strip() if figures else "No figures of this target are published."
    return "\n\n".join([heading, table(header, rows), UNIT_RULE + (f" {DBFSKD_RULE}" if by_paper else "")])


def _top1_row(printed: Mapping[str, Any] | None, top1: float | None, what: str) -> tuple[str, ...]:
    here = "not measured" if top1 is None else f"{percent(top1)} ({what})"
    if printed is None:
        return ("top-1", "not published", "-", here, "-")
    spread = f" ± {printed['std']:.2f}" if "std" in printed else ""
    gap = "-" if top1 is None else f"{top1 - printed['value']:+.2f} points"
    return ("top-1", f"{printed['value']:.2f}{spread} %", f"percent, {printed['source']}", here, gap)
