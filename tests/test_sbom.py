"""The bill of materials is valid CycloneDX, names every file and what runs it, and is the same document every time."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec

import pytest

from kdzoo.errors import EnvironmentProblem, IntegrityError
from kdzoo.export.package import Package
from kdzoo.export.sbom import sbom
from kdzoo.zoo.catalog import DEFAULT_ENTRY
from kdzoo.zoo.checkpoint import describe_files
from kdzoo.zoo.files import sha256, to_json

pytestmark = pytest.mark.skipif(find_spec("cyclonedx") is None, reason="the extra supply-chain: pip install -e '.[supply-chain]'")
Call = Callable[..., tuple[str, str]]


def test_it_is_valid_and_the_same_on_stdout_in_a_file_and_with_json(package_copy: Package, call: Call) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator  # two seconds

    text = call("sbom", package_copy.folder)[0]
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert json.loads(call("sbom", package_copy.folder, "--json")[0]) == json.loads(text)
    call("sbom", package_copy.folder, "-o", package_copy.folder.parent / "bom.json")
    assert (package_copy.folder.parent / "bom.json").read_text() == text
    assert "timestamp" not in json.loads(text)["metadata"]


def test_the_serial_number_is_that_of_the_manifest(package_copy: Package, package_of: Callable[[str], Package]) -> None:
    first, other = sbom(package_copy), sbom(package_of("2"))
    assert first["serialNumber"] == sbom(package_copy)["serialNumber"] != other["serialNumber"]


def test_every_file_is_there_with_the_sha256_that_it_has(package_copy: Package) -> None:
    found = {c["name"]: c["hashes"] for c in sbom(package_copy)["components"] if c["type"] == "file"}
    on_disk = {p.relative_to(package_copy.folder).as_posix(): p for p in package_copy.folder.rglob("*") if p.is_file()}
    manifest = on_disk.pop("manifest.json")
    assert found == {name: [{"alg": "SHA-256", "content": sha256(path)}] for name, path in on_disk.items()}
    assert sbom(package_copy)["metadata"]["component"]["hashes"][0]["content"] == sha256(manifest)


def test_the_graph_says_what_runs_a_file_and_the_rest_of_the_toolchain_is_excluded(package_copy: Package) -> None:
    document, versions = sbom(package_copy), package_copy.document["provenance"]["versions"]
    runtime = f"pkg:pypi/onnxruntime@{versions['onnxruntime']}"
    graph = {row["ref"]: row.get("dependsOn", []) for row in document["dependencies"]}
    assert graph["file:model.fp32.onnx"] == [runtime] and graph["file:labels.txt"] == []
    assert set(graph["model"]) == {f"file:{name}" for name in package_copy.document["files"]}
    scopes = {c["bom-ref"]: c["scope"] for c in document["components"] if c["type"] == "library"}
    assert scopes[runtime] == "required" and scopes[f"pkg:pypi/onnxscript@{versions['onnxscript']}"] == "excluded"
    assert len(scopes) == len(versions) - 1, "all libraries on record, each once; Python is none"


def test_the_model_card_repeats_what_was_measured(package_copy: Package) -> None:
    component = sbom(package_copy)["metadata"]["component"]
    card, metrics = component["modelCard"], package_copy.metrics
    assert component["type"] == "machine-learning-model"
    assert card["modelParameters"]["datasets"][0]["name"] == "toy"
    rows = {
        (row["type"], row.get("slice", "").partition(",")[0]): row["value"]
        for row in card["quantitativeAnalysis"]["performanceMetrics"]
    }
    assert rows["params", ""] == str(metrics["student"]["params"])
    top1 = metrics["artifacts"]["model.fp32.onnx"]["accuracy"]["top1"]
    assert rows["top-1 accuracy in percent", "model.fp32.onnx"] == f"{top1:.2f}"
    assert rows["top-1 accuracy in percent", "checkpoint"] == "77.70"


def test_only_what_was_made_of_our_weights_has_our_license(package_copy: Package) -> None:
    assert "licenses" not in sbom(package_copy)["metadata"]["component"]
    ours = {**package_copy.document, "source": {**package_copy.document["source"], "given": DEFAULT_ENTRY}}
    found = sbom(Package(package_copy.folder, ours))["metadata"]["component"]["licenses"]
    assert found == [{"license": {"id": "Apache-2.0"}}]


def test_the_parts_of_a_cascade_need_their_runtime_and_their_list_needs_them(package_copy: Package) -> None:
    folder, whole = package_copy.folder, package_copy.document["artifacts"][0]
    engine = {**whole, "format": "trt-rtx", "runtime": "tensorrt_rtx", "runtime_version": "1.6.0", "compute_capability": "8.6"}
    parts = []
    for number in (1, 2):
        name = f"model.fp32.part{number}.sm86.trt-rtx.engine"
        (folder / name).write_bytes(b"engine")
        (folder / f"{name}.json").write_text("{}")
        parts.append({**engine, "path": name, "details": {"sidecar": f"{name}.json"}})
    listed = {**engine, "path": "model.fp32.sm86.trt-rtx.parts.json", "format": "parts", "details": {"parts": parts}}
    for name in ("cascade_driver.py", listed["path"]):
        (folder / name).write_text("")
    document = {**package_copy.document, "artifacts": [whole, listed], "files": describe_files(folder)}
    found = sbom(Package(folder, document))
    graph = {row["ref"]: set(row.get("dependsOn", [])) for row in found["dependencies"]}
    runtime = "pkg:pypi/tensorrt-rtx@1.6.0"
    for part in parts:
        assert graph[f"file:{part['path']}"] == {runtime, f"file:{part['path']}.json"}
    files = [name for part in parts for name in (part["path"], f"{part['path']}.json")]
    assert graph[f"file:{listed['path']}"] == {runtime, "file:cascade_driver.py", *(f"file:{name}" for name in files)}
    del document["files"][parts[1]["path"]]
    with pytest.raises(IntegrityError, match=r"part2.* without its sha256"):
        sbom(Package(folder, document))


def test_a_manifest_of_another_shape_is_no_crash(package_copy: Package) -> None:
    with pytest.raises(IntegrityError, match="provenance"):
        sbom(Package(package_copy.folder, {**package_copy.document, "provenance": {}}))


def test_a_package_with_a_changed_file_gets_none(package_copy: Package) -> None:
    (package_copy.folder / "labels.txt").write_text("other\n")
    with pytest.raises(IntegrityError, match=r"labels\.txt"):
        sbom(package_copy)


def test_without_the_library_the_pip_line_is_told(package_copy: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cyclonedx.output", None)
    with pytest.raises(EnvironmentProblem) as caught:
        sbom(package_copy)
    assert "kdzoo[supply-chain]" in caught.value.hint


def test_the_document_ends_as_a_text_file_does(package_copy: Package) -> None:
    assert to_json(sbom(package_copy)).endswith(b"}\n")
