"""What a package's card says: its files, the paper beside us under one unit rule, how it was measured, what it does not say."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from kdzoo.export.cards.figures import DBFSKD_RULE, UNIT_RULE, published_section
from kdzoo.export.cards.package_card import package_card
from kdzoo.export.cards.published_figures import published_figures
from kdzoo.export.package import Artifact, Package
from kdzoo.tests.card_programs import programs

SECTIONS = ["Artifacts", "Published vs measured", "Latency", "How measured", "Use it", "Reproduce", "Limits"]
LATENCY = {"batch": 8, "calls": 55, "p50_ms": 1.11, "p90_ms": 2.22, "p99_ms": 3.33, "mean_ms": 4.44, "images_per_s": 4321.0}
COUNTS = {"top1": None, "params": 0, "macs": 0, "macs_dbfskd": 0}


def card_of(package: Package, metrics: dict[str, Any], document: dict[str, Any] | None = None) -> str:
    artifacts = package.artifacts
    if document is not None:
        artifacts = [Artifact.from_dict(described) for described in document["artifacts"]]
    return package_card(document or package.document, metrics, artifacts, package.labels, package.preprocess.to_dict())


def section(card: str, title: str) -> str:
    found = re.search(rf"^## {title}\n\n(.*?)(?=^## |\Z)", card, re.DOTALL | re.MULTILINE)
    assert found is not None, f"there is no section {title}"
    return found[1]


def row(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_the_sections_stand_in_their_order(package_of: Callable[[str], Package]) -> None:
    card = (package_of("1").folder / "README.md").read_text()
    assert re.findall(r"^## (.*)$", card, re.MULTILINE) == SECTIONS


def test_no_number_is_typed_by_hand(package_of: Callable[[str], Package]) -> None:
    """With every number of the JSON made another one, none stays but those in the recorded words (commands, versions, host)."""
    package, metrics = package_of("1"), copy.deepcopy(package_of("1").metrics)
    metrics["artifacts"]["model.fp32.onnx"]["latency"] = [LATENCY]
    artifacts, preprocess = package.document["artifacts"], package.preprocess.to_dict()
    before, after = (
        package_card(
            change(package.document), change(metrics), [Artifact.from_dict(change(a)) for a in artifacts], package.labels * times,
            change(preprocess),
        )
        for change, times in ((copy.deepcopy, 1), (shifted, 2))
    )  # fmt: skip
    recorded = f"{package.document['provenance']} {package.document['source']} {metrics['host']}"
    for title in (name for name in SECTIONS if name != "Use it"):
        kept = numbers(section(before, title)) & numbers(section(after, title)) - numbers(recorded)
        assert numbers(section(before, title)) and not kept, f"{title} says {kept} of any package"


def numbers(text: str) -> set[str]:
    """Those that stand alone: not the digits of a word or of a version's tail."""
    return set(re.findall(r"(?<![\w.,+-])\d+(?:[.,]\d+)*(?:e[+-]\d+)?(?!\w)", text))


def shifted(value: Any) -> Any:
    """Every number made another one."""
    if isinstance(value, Mapping):
        return {key: shifted(v) for key, v in value.items()}
    if isinstance(value, list):
        return [shifted(v) for v in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return value * 1000 + (7 if isinstance(value, int) else 123.456)


def test_a_file_that_another_one_beats_is_marked(package_of: Callable[[str], Package]) -> None:
    package = package_of("1")
    metrics = copy.deepcopy(package.metrics)
    metrics["artifacts"]["model.fp32.onnx"]["dominated_by"] = "model.int8.onnx"
    card = card_of(package, metrics)
    note = "`model.fp32.onnx`: `model.int8.onnx` is at least as accurate and at least as fast at batch 1"
    assert f"- {note}" in section(card, "Artifacts") and "better file than `model.fp32.onnx`" in section(card, "Limits")
    assert "at least as fast" not in card_of(package, package.metrics)


def test_the_eight_bit_file_says_how_it_came_about(package_of: Callable[[str], Package]) -> None:
    package = package_of("1")
    document = copy.deepcopy(package.document)
    details = {"grid": "signed", "quantised_layers": 31, "kept_float32": ["Conv_7", "Gemm_1"]}
    details["calibration"] = {"method": "percentile", "images": 321, "split": "train", "seed": 5}
    document["artifacts"][0] |= {"precision": "int8", "details": details}
    text = section(card_of(package, package.metrics, document), "Artifacts")
    assert (
        "signed activations, for onnxruntime; ranges by `percentile` over 321 images of the train split (seed 5); 31 layers" in text
    )
    assert "computed in float32: `Conv_7`, `Gemm_1`" in text


def test_what_ran_a_file_is_stated_with_its_threads(package_of: Callable[[str], Package]) -> None:
    package, metrics = package_of("1"), copy.deepcopy(package_of("1").metrics)
    measured = metrics["artifacts"]["model.fp32.onnx"]
    measured["runtime"] = {"runtime": "some-runtime", "version": "9.8.7", "device": "its device", "threads": 3}
    measured["latency"] = [LATENCY, {**LATENCY, "batch": 64, "calls": 20}]
    text = section(card_of(package, metrics), "How measured")
    assert f"- Machine: {metrics['host']}. Runtimes: some-runtime 9.8.7 (its device, 3 threads)." in text
    assert "Latency: 20 to 55 calls for each row" in text and "images/s are those of the median call" in text
    measured["latency"] = [{**LATENCY, "passes": 12}]
    text = section(card_of(package, metrics), "How measured")
    assert "Latency: 55 calls for each row" in text and "go through 12 times" in text and "images/s are those of the mean" in text
    assert "| 8 | 4.44 | 1.11 | 2.22 | 3.33 | 4,321 |" in section(card_of(package, metrics), "Latency")
    del measured["runtime"]  # as older packages are
    assert f"Runtimes: onnxruntime {package.artifacts[0].runtime_version}." in section(card_of(package, metrics), "How measured")


def test_outputs_and_exits_get_their_tables(package_of: Callable[[str], Package]) -> None:
    package = package_of("all")
    outputs = section(card_of(package, package.metrics), "Outputs")
    assert all(f"| `{name}` |" in outputs for name in ("logits", "logits_2"))
    metrics, document = copy.deepcopy(package_of("1").metrics), copy.deepcopy(package_of("1").document)
    document["cascade"] = {
        "values": [0.9125], "limit": 0.1, "loss": -0.25, "bound": 0.08, "n": 5000, "shares": [0.625, 0.375], "macs": 1234567.0,
    }  # fmt: skip
    metrics["artifacts"]["model.fp32.onnx"]["exits"] = {
        "shares": {"1": 0.61, "2": 0.39}, "p50_ms": {"1": 0.51, "2": 1.72}, "agreement": 0.9993,
    }  # fmt: skip
    exits = section(card_of(package_of("1"), metrics, document), "Exits")
    assert "1,234,567 multiply-adds for an image in the mean" in exits and "-0.25 points" in exits
    assert row(exits, "1") == ["1", "62.5 %", "0.9125"] and row(exits, "2") == ["2", "37.5 %", "whoever is left"]
    assert "| `model.fp32.onnx` | 2 | 39.0 % | 1.72 ms | 99.93 % |" in exits


def test_the_cost_of_a_cascade_is_stated_in_the_mean_and_at_most(package_of: Callable[[str], Package]) -> None:
    package, metrics = package_of("1"), package_of("1").metrics
    cascade = {"values": [0.9], "limit": 0.1, "loss": 0.0, "bound": 0.1, "n": 5, "shares": [0.6, 0.4], "macs": 1234567.4}
    most = f"{metrics['student']['macs']:,}"
    head = card_of(package, metrics, {**package.document, "cascade": cascade}).partition("\n## ")[0]
    assert f"1,234,567 multiply-adds for an image in the mean (of the held-out images), {most} at most." in head
    assert "per image" not in head and f"{most} multiply-adds per image." in card_of(package, metrics).partition("\n## ")[0]


def test_checks_batches_and_gates_are_stated_as_they_were_applied(package_of: Callable[[str], Package]) -> None:
    package, metrics, document = package_of("1"), copy.deepcopy(package_of("1").metrics), copy.deepcopy(package_of("1").document)
    fp32, first = metrics["artifacts"]["model.fp32.onnx"], document["artifacts"][0]
    fp32 |= {"checker": "one check", "batches_exercised": [1, 8], "parity": {**fp32["parity"], "largest_logit": 64.0}}
    document["artifacts"].append({**first, "path": "model.int8.engine", "precision": "int8"})
    metrics["artifacts"]["model.int8.engine"] = {**fp32, "checker": "another", "batches_exercised": [4]}
    text = section(card_of(package, metrics, document), "How measured")
    assert "- Checked before it was run (one check): `model.fp32.onnx`." in text
    assert "- Checked before it was run (another): `model.int8.engine`." in text
    assert "`model.fp32.onnx` in batches of 1, 8, held to 0.002; `model.int8.engine` in batches of 4, held to 1." in text
    assert "the same logits" not in text and "leave" not in text
    fp32["exits"] = {"shares": {"1": 1.0}, "p50_ms": {"1": 1.0}, "agreement": 1.0}
    document["cascade"] = {"values": [], "limit": 0.1, "loss": 0.0, "bound": 0.1, "n": 5, "shares": [1.0], "macs": 1.0}
    text = section(card_of(package, metrics, document), "How measured")
    assert "may leave at another exit in another batch" in text
    assert re.search(r"Gates of fp32: .* and at least 99 % leave where they do in torch\.", text)
    assert re.search(r"Gates of int8: .* and at least 85 % leave where they do in torch\.", text)


def test_predict_is_offered_where_it_can_run(package_of: Callable[[str], Package]) -> None:
    package, document = package_of("1"), copy.deepcopy(package_of("1").document)
    assert "kdzoo predict . picture.jpg" in card_of(package, package.metrics)
    document["artifacts"][0] |= {"format": "trt-rtx", "runtime": "tensorrt_rtx", "compute_capability": "8.6"}
    card = card_of(package, package.metrics, document)
    assert "kdzoo predict" not in card and "kdzoo verify ." in card


def test_files_that_were_not_verified_are_said_to_be_so(package_of: Callable[[str], Package]) -> None:
    package = package_of("1")
    metrics = {**package.metrics, "reference": None, "artifacts": {"model.fp32.onnx": {"not_run": "--no-verify"}}}
    card = card_of(package, metrics, {**package.document, "verified": False})
    assert "**These files were not verified**" in section(card, "How measured")
    assert "stated by the checkpoint, 1,234 images" in section(card, "Published vs measured") and len(programs(card)) == 2


# --- published vs measured: figures of the papers' tables ---------------------------------------------------------------


def test_a_paper_that_counts_otherwise_is_met_by_its_own_rule() -> None:
    found = published_figures("dbfskd-resnet34-cifar100", ["1"])
    text = published_section(found, "1", {"top1": 78.0, "params": 560_000, "macs": 1, "macs_dbfskd": 250_000_000}, "torch")
    assert row(text, "top-1")[1] == "79.05 %" and row(text, "top-1")[4] == "-1.05 points"  # table 4, Br-1
    assert row(text, "multiply-adds")[3] == "250,000,000" and DBFSKD_RULE in text and UNIT_RULE in text


def test_a_figure_that_cannot_be_met_says_why() -> None:
    found = published_figures("ahbf-resnet32-reduce-cifar100", ["4"])
    text = published_section(found, "4", {"top1": None, "params": 472_756, "macs": 69_130_496, "macs_dbfskd": 1}, "")
    parameters = row(text, "parameters")
    assert parameters[1] == "1.35 M" and parameters[3:] == ["472,756", "-0.8772 M"] and "cannot be reproduced: " in parameters[2]
    assert row(text, "multiply-adds")[1] == "142.65 M" and row(text, "multiply-adds")[3] == "69,130,496"
    assert row(text, "top-1")[1] == "73.43 %" and row(text, "top-1")[3] == "not measured" and DBFSKD_RULE not in text


def test_a_target_that_has_two_names_has_one_published_figure() -> None:
    found = published_figures("ahbf-resnet32-cifar100", ["target", "1", "2"])["targets"]
    assert found["target"]["top1"]["value"] == found["1"]["top1"]["value"] == 74.81  # table 2: 25.19 ± 0.16 % error
    assert found["target"]["top1"]["std"] == 0.16 and "25.19" in found["target"]["top1"]["source"] and "2" not in found


@pytest.mark.parametrize("entry", ["dbfskd-resnet18-x0.5-cifar100", "dml-resnet32-cifar100", "test-entry"])
def test_what_nobody_published_is_said_to_be_so(entry: str) -> None:
    text = published_section(published_figures(entry, ["target"]), "target", COUNTS, "")
    assert "No figures of this target are published." in text and text.count("not published") == 3


def test_the_length_of_the_run_is_a_limit(package_of: Callable[[str], Package]) -> None:
    package = package_of("1")
    document = {**package.document, "published": {"epochs": 300, "targets": {}}}
    assert "trained for 3 epochs, those of the paper for 300" in section(card_of(package, package.metrics, document), "Limits")
    assert "those of the paper" not in card_of(package, package.metrics)
