"""The head of every card is what the Hugging Face Hub reads: nothing is lost on the way there and back, and nothing is invented."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData, metadata_load

from kdzoo.export.cards.collection_card import collection_card
from kdzoo.export.cards.entry_card import entry_card
from kdzoo.export.cards.metadata import base_model, front_matter, metadata, package_metadata, results_of
from kdzoo.export.cards.published_figures import published_figures
from kdzoo.export.package import Package
from kdzoo.tests.small_packages import bundled
from kdzoo.zoo.catalog import CARDS, DEFAULT_ENTRY
from kdzoo.zoo.files import read_json

ACCURACY = {"top1": 62.67, "top5": 89.14, "n": 10000, "split": "test"}


@pytest.fixture(params=["package", "entry", "collection", *sorted(path.parent.name for path in CARDS.glob("*/README.md"))])
def card(request: pytest.FixtureRequest, package_of: Callable[[str], Package], tmp_path: Path) -> Path:
    """The README of each kind of thing that is published."""
    if request.param == "package":
        return package_of("all").folder / "README.md"
    if request.param == "entry":
        checkpoint = bundled()
        targets = read_json(checkpoint.folder / "metrics.json")["targets"]
        text = entry_card(checkpoint.manifest, targets, published_figures(checkpoint.manifest.entry, targets))
    elif request.param == "collection":
        text = collection_card({target: package_of(target) for target in ("1", "2")})
    else:
        return CARDS / request.param / "README.md"
    (tmp_path / "README.md").write_text(text)
    return tmp_path / "README.md"


def test_the_head_goes_to_the_hub_and_back(card: Path) -> None:
    written = metadata_load(card)
    assert written is not None and {"license", "library_name", "pipeline_tag", "tags", "metrics", "model-index"} <= set(written)
    loaded = ModelCard.load(card)
    assert loaded.data.to_dict() == written, "ModelCard reads something else than the head says"
    assert ModelCardData(**written).to_dict() == written
    assert yaml.safe_load(loaded.data.to_yaml()) == written, "what ModelCard writes is not what it read"
    assert len(written["model-index"]) == 1 and len(written["model-index"][0]["results"]) == 1


def test_every_result_names_what_has_it(package_of: Callable[[str], Package]) -> None:
    package = package_of("all")
    measured = package.metrics["artifacts"]["model.fp32.onnx"]
    results = ModelCard.load(package.folder / "README.md").data.eval_results
    assert results is not None
    found = {(r.metric_config, r.metric_args.get("output"), r.metric_args["top_k"]): r.metric_value for r in results}  # type: ignore[union-attr]
    expected: dict[Any, float] = {}
    for output, accuracy in [(None, measured["accuracy"]), *((n, o["accuracy"]) for n, o in measured["outputs"].items())]:
        for k in (1, 5):
            expected["model.fp32.onnx", output, k] = pytest.approx(accuracy[f"top{k}"] / 100, abs=1e-6)  # type: ignore[assignment]
    assert found == expected
    assert {(r.task_type, r.metric_type, r.dataset_type, r.dataset_split) for r in results} == {
        ("image-classification", "accuracy", "toy", "test")
    }


def test_a_file_that_was_not_measured_has_no_result(package_of: Callable[[str], Package]) -> None:
    package = package_of("1")
    metrics = {**package.metrics, "artifacts": {"model.fp32.onnx": {"not_run": "--no-verify"}}}
    assert "model-index" not in package_metadata(package.document, metrics, package.artifacts)


@pytest.mark.parametrize("text", ["3", "1+2", "no", "1.10", "a: b", "# x", "résumé", "{}", "2026-11-21", "'", "null"])
def test_words_that_look_like_something_else_stay_words(text: str) -> None:
    written = metadata("name", "toy", [text], results_of(ACCURACY, text))
    head = front_matter(written)
    assert yaml.safe_load(re.fullmatch(r"---\n(.*)---", head, re.DOTALL)[1]) == written  # type: ignore[index]
    assert ModelCardData(**yaml.safe_load(head.strip("-"))).eval_results[0].metric_config == text  # type: ignore[index]


@pytest.mark.parametrize(
    ("dataset", "hub", "split"),
    [
        ("cifar100", "uoft-cs/cifar100", "test"),
        ("cifar10", "uoft-cs/cifar10", "test"),
        ("imagenet", "ILSVRC/imagenet-1k", "validation"),
        ("tiny-imagenet", "zh-plus/tiny-imagenet", "valid"),
        ("raf-db", None, "test"),
    ],
)
def test_a_data_set_is_named_as_the_hub_names_it_or_not_at_all(dataset: str, hub: str | None, split: str) -> None:
    written = metadata("name", dataset, [], results_of(ACCURACY, "target"))
    assert written.get("datasets") == ([hub] if hub else None)
    (result,) = written["model-index"][0]["results"]
    assert result["dataset"] == {"name": dataset, "type": hub or dataset, "split": split}


@pytest.mark.parametrize(
    ("given", "narrow", "expected"),
    [
        (None, True, None),
        ("ahbf-resnet32-cifar100", True, None),
        ("file:///srv/models/org/name@v1", True, None),
        ("org/name@0123abc", True, ("org/name", "quantized")),
        ("org/name@0123abc#3", False, ("org/name", None)),
    ],
)
def test_only_a_repository_of_the_hub_is_a_base_model(given: str | None, narrow: bool, expected: Any) -> None:
    assert base_model({"source": {"given": given}}, narrow) == expected
    written = metadata("name", "toy", [], base=expected)
    assert written.get("base_model") == (expected and expected[0])
    assert written.get("base_model_relation") == (expected and expected[1])


def test_a_package_has_our_license_only_where_it_was_made_of_our_weights(package_of: Callable[[str], Package]) -> None:
    package = package_of("1")
    weights = bundled().manifest.files["model.safetensors"]["sha256"]
    for changes, license in (
        ({}, "unknown"), ({"given": "org/name@0123abc"}, "unknown"), ({"given": DEFAULT_ENTRY}, "apache-2.0"),
        ({"weights_sha256": weights}, "apache-2.0"),
    ):  # fmt: skip
        document = {**package.document, "source": {**package.document["source"], **changes}}
        assert package_metadata(document, package.metrics, package.artifacts)["license"] == license
        assert f"license: {license}\n" in collection_card({"1": Package(package.folder, document)})


def test_tags_tell_formats_and_precisions(package_of: Callable[[str], Package]) -> None:
    package = package_of("1")
    (artifact,) = package.document["artifacts"]
    described = json.loads(
        json.dumps({**package.document, "artifacts": [artifact, {**artifact, "format": "trt-rtx", "precision": "int8"}]})
    )
    artifacts = Package(package.folder, described).described
    tags = package_metadata(described, package.metrics, artifacts)["tags"]
    assert tags == ["knowledge-distillation", "ahbf", "resnet20", "target-1", "onnx", "tensorrt-rtx", "int8"]
