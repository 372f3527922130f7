"""The YAML head of a card, which the Hugging Face Hub reads. Torch-free.

It holds only what the Hub can resolve: data sets by their ids there, a base model only where there is one on the Hub.
Fields: https://huggingface.co/docs/hub/model-cards; the results: `huggingface_hub.EvalResult`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...zoo.catalog import CARDS
from ...zoo.checkpoint import WEIGHTS
from ...zoo.files import read_json
from ...zoo.manifest import MANIFEST
from ...zoo.reference import REPO_ID
from ..package import Artifact

LICENSE, UNKNOWN = "apache-2.0", "unknown"  # of the weights that come with kdzoo, and of any others: words of the Hub
TASK = "image-classification"
# By our name: id on the Hub, and what the split is called there that we call `test`.
HUB_DATASETS = {
    "cifar10": ("uoft-cs/cifar10", "test"),
    "cifar100": ("uoft-cs/cifar100", "test"),
    "tiny-imagenet": ("zh-plus/tiny-imagenet", "valid"),
    "imagenet": ("ILSVRC/imagenet-1k", "validation"),
}
FORMAT_TAGS = {"trt": "tensorrt", "trt-rtx": "tensorrt-rtx"}  # the others are called so
NARROW = ("fp16", "bf16", "int8")


def front_matter(metadata: Mapping[str, Any]) -> str:
    """The fields between their two lines."""
    import yaml

    text = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{text}---"


def metadata(
    name: str,
    dataset: str,
    tags: Iterable[str],
    results: Sequence[dict[str, Any]] = (),
    *,
    license: str = UNKNOWN,
    base: tuple[str, str | None] | None = None,
) -> dict[str, Any]:
    """The fields of one card.

    Args:
        results: metrics of `results_of`; none where nothing was measured. license: `license_of` what it was made from.
        base: repository on the Hub that this was made of, and how it relates to it, where there is a word for that.
    """
    hub = HUB_DATASETS.get(dataset)
    document: dict[str, Any] = {
        "license": license,
        "library_name": "kdzoo",
        "pipeline_tag": TASK,
        "tags": list(dict.fromkeys(("knowledge-distillation", *tags))),
    }
    if hub:
        document["datasets"] = [hub[0]]
    document["metrics"] = ["accuracy"]
    if base is not None:
        document["base_model"] = base[0]
        if base[1]:
            document["base_model_relation"] = base[1]
    if results:
        split = {"split": hub[1] if hub else "test"}
        about = {"task": {"type": TASK}, "dataset": {"name": dataset, "type": hub[0] if hub else dataset, **split}}
        document["model-index"] = [{"name": name, "results": [{**about, "metrics": list(results)}]}]
    return document


def results_of(accuracy: Mapping[str, Any], config: str, **further: str) -> list[dict[str, Any]]:
    """Top-1 and, of more than five classes, top-5 as shares; `config` names the file, or the target, that has them."""
    figures = ((1, accuracy.get("top1")), (5, accuracy.get("top5")))
    return [
        {
            "type": "accuracy",
            "value": round(value / 100, 6),
            "name": f"top-{k} accuracy",
            "config": config,
            "args": {"top_k": k, "images": accuracy["n"], **further},
        }
        for k, value in figures
        if value is not None
    ]


def package_metadata(document: Mapping[str, Any], metrics: Mapping[str, Any], artifacts: Sequence[Artifact]) -> dict[str, Any]:
    """Of a package: a result for every file, and every output, whose accuracy was measured."""
    results: list[dict[str, Any]] = []
    for path, measured in ((a.path, metrics["artifacts"].get(a.path, {})) for a in artifacts):
        if "accuracy" in measured:
            results += results_of(measured["accuracy"], path)
        for name, output in measured.get("outputs", {}).items():
            if "accuracy" in output:
                results += results_of(output["accuracy"], path, output=name)
    formats = dict.fromkeys(FORMAT_TAGS.get(a.format, a.format) for artifact in artifacts for a in (artifact.parts or [artifact]))
    narrow = [p for p in dict.fromkeys(a.precision for a in artifacts) if p in NARROW]
    tags = (document["method"], document["backbone"], f"target-{document['target']}", *formats, *narrow)
    name = f"{document['entry']}-{document['target']}"
    base = base_model(document, bool(narrow))
    return metadata(name, document["dataset"], tags, results, license=license_of(document["source"]), base=base)


def license_of(source: Mapping[str, Any]) -> str:
    """Of what was made from weights that come with kdzoo, ours; anybody else's weights are theirs, and nothing states a license.

    `source` as in the manifest of a package: the entry that it was `given` as, or the sha256 of its weights.
    """
    bundled = {path.parent.name: path for path in CARDS.glob(f"*/{MANIFEST}")}
    if source.get("given") in bundled:
        return LICENSE
    ours = (read_json(path)["files"][WEIGHTS]["sha256"] for path in bundled.values())
    return LICENSE if source.get("weights_sha256") in ours else UNKNOWN


def base_model(document: Mapping[str, Any], narrow: bool) -> tuple[str, str | None] | None:
    """The checkpoint on the Hub that a package was cut from; None for a local or a bundled one. A package with narrower numbers is
    `quantized`; for one that is only cut out and converted the Hub has no word."""
    repository = (document["source"].get("given") or "").partition("#")[0].partition("@")[0]
    return (repository, "quantized" if narrow else None) if REPO_ID.fullmatch(repository) else None
