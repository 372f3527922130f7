"""What somebody else made is not believed: neither what is not signed, nor a program in it, nor a name, nor a figure."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from kdzoo.cli import main
from kdzoo.errors import IntegrityError
from kdzoo.export import cascade_driver
from kdzoo.export.consistency import check_story
from kdzoo.export.onnx_file import describe_onnx, seal_onnx
from kdzoo.export.package import PULLED, Package, write_manifest
from kdzoo.export.verify import verify_package
from kdzoo.tests.small_machines import reseal
from kdzoo.zoo.checkpoint import describe_files
from kdzoo.zoo.files import read_json, write_json
from kdzoo.zoo.paths import DRIVER, check_name

ONNX, PART, PARTS = "model.fp32.onnx", "model.fp32.part1.onnx", "model.fp32.parts.json"


@pytest.mark.parametrize("told", [[], ["labels.txt"]])
def test_what_nobody_signs_excuses_only_what_is_absent(told: list[str], package_copy: Package) -> None:
    write_json(package_copy.folder / PULLED, {"schema_version": 1, "files": told})
    whole = len(package_copy.document["files"])
    found = verify_package(Package.open(package_copy.folder))
    assert found["files"] == whole and "golden" in found["artifacts"][ONNX]
    content = bytearray((package_copy.folder / ONNX).read_bytes())
    content[len(content) // 2] ^= 1
    (package_copy.folder / ONNX).write_bytes(content)
    with pytest.raises(IntegrityError, match=ONNX):
        verify_package(Package.open(package_copy.folder))
    (package_copy.folder / ONNX).unlink()
    assert verify_package(Package.open(package_copy.folder))["files"] == whole - 1


def test_a_list_of_what_was_pulled_that_is_none_is_refused(package_copy: Package) -> None:
    write_json(package_copy.folder / PULLED, {"schema_version": 1, "files": 5})
    with pytest.raises(IntegrityError, match=r"pulled\.json does not say"):
        verify_package(package_copy)


def test_a_file_that_is_no_part_of_the_package_is_told(package_copy: Package, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify_package(package_copy)["unnamed"] == []
    (package_copy.folder / "onnxruntime.py").write_text("raise SystemExit('run')\n")
    (package_copy.folder / "model.sig").write_text("{}")
    assert verify_package(package_copy)["unnamed"] == ["onnxruntime.py"]
    main(["verify", str(package_copy.folder)])
    assert "looked at by nobody: onnxruntime.py" in capsys.readouterr().out


BAD = ["../outside", "a/../b", "/etc/passwd", "program.py", "lib.so", "lib.so.1", "x.pyd", "x.dll", "model.pkl.gz", "a.pth.tar",
       "labels.txt ", "labels.txt.", "a./b", "..."]  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_leads_out_or_to_a_program_is_refused_when_a_package_is_opened(name: str, package_copy: Package) -> None:
    manifest = package_copy.folder / "manifest.json"

    def refused(change: Callable[[dict[str, Any]], object]) -> None:
        document = read_json(manifest)
        change(document)
        write_json(package_copy.folder / "other" / "manifest.json", document)
        with pytest.raises(IntegrityError, match="names the file"):
            Package.open(package_copy.folder / "other")

    details = (
        {"sidecar": name},
        {"weights": name},
        {"parts": [{"path": name}]},
        {"parts": [{"path": "x", "details": {"weights": name}}]},
    )
    refused(lambda document: document["files"].update({name: document["files"]["labels.txt"]}))
    refused(lambda document: document["artifacts"][0].update(path=name))
    for further in details:
        refused(lambda document, further=further: document["artifacts"][0].update(details=further))  # type: ignore[misc]


@pytest.mark.parametrize("verb", ["verify", "doctor", "predict", "bench", "sbom"])
def test_no_verb_follows_a_name_out_of_a_package(verb: str, package_copy: Package, toys_npz: Path) -> None:
    shutil.copyfile(package_copy.folder / ONNX, package_copy.folder.parent / "outside.onnx")
    document = package_copy.document
    document["files"]["../outside.onnx"] = document["files"].pop(ONNX)
    document["artifacts"][0]["path"] = "../outside.onnx"
    write_json(package_copy.folder / "manifest.json", document)
    with pytest.raises(SystemExit) as ending:
        main([verb, str(package_copy.folder), *([str(toys_npz)] if verb == "predict" else [])])
    assert ending.value.code == 6


def test_the_names_that_kdzoo_writes_are_taken() -> None:
    for name in (ONNX, "model.fp32.openvino.bin", "1+2/model.int8.sm86.trt-rtx.engine.json", f"cascade/{DRIVER}"):
        assert check_name(name) == name


def with_parts(package: Package) -> Package:
    """The same with a cascade of one part."""
    folder = package.folder
    shutil.copyfile(cascade_driver.__file__, folder / DRIVER)
    shutil.copyfile(folder / ONNX, folder / PART)
    metrics = read_json(folder / "metrics.json")
    metrics["artifacts"][PARTS] = {"not_run": "made by hand"}
    write_json(folder / "metrics.json", metrics)
    write_json(folder / PARTS, {"schema": 1, "driver": DRIVER, "thresholds": [], "parts": [listed(folder)]})
    return sealed(package)


def listed(folder: Path) -> dict[str, Any]:
    return {"path": PART, **describe_files(folder)[PART]}


def sealed(package: Package) -> Package:
    """With the manifest made right again, for what lies in the folder now."""
    alone, files = package.artifact("onnx"), describe_files(package.folder)
    part = replace(alone, path=PART, sha256=files[PART]["sha256"], bytes=files[PART]["bytes"])
    details = {"parts": [asdict(part)], "thresholds": [], "outputs": ["logits", "exit"]}
    whole = replace(part, path=PARTS, format="parts", sha256=files[PARTS]["sha256"], details=details)
    write_manifest(package.folder, {**package.document, "files": files}, [alone, whole])
    return Package.open(package.folder)


def test_the_parts_of_a_cascade_are_run_by_the_program_of_kdzoo_only(package_copy: Package) -> None:
    package = with_parts(package_copy)
    check_story(package)
    with (package.folder / DRIVER).open("a") as file:
        file.write("print('run')\n")
    with pytest.raises(IntegrityError, match=r"cascade_driver\.py is a program"):
        verify_package(sealed(package))
    document = read_json(package.folder / "manifest.json")
    del document["files"][DRIVER]
    write_json(package.folder / "manifest.json", document)
    with pytest.raises(IntegrityError, match=r"lack cascade_driver\.py"):
        verify_package(Package.open(package.folder))


@pytest.mark.parametrize(("field", "value"), [("thresholds", [0.5]), ("driver", "other.py"), ("parts", []), ("parts", None)])
def test_the_list_of_parts_says_what_the_manifest_says(field: str, value: object, package_copy: Package) -> None:
    package = with_parts(package_copy)
    write_json(package.folder / PARTS, {**read_json(package.folder / PARTS), field: value})
    with pytest.raises(IntegrityError, match=rf"parts\.json: {field} is not what"):
        verify_package(sealed(package))


def rewritten(package: Package, change: Callable[[onnx.ModelProto], object], name: str = ONNX) -> Package:
    path = package.folder / name
    model = onnx.load(path)
    change(model)
    path.write_bytes(seal_onnx(model))
    metrics = read_json(package.folder / "metrics.json")
    metrics["artifacts"][ONNX]["bytes"] = (package.folder / ONNX).stat().st_size
    write_json(package.folder / "metrics.json", metrics)
    return package


def of_another_entry(model: onnx.ModelProto) -> None:
    (entry,) = [entry for entry in model.metadata_props if entry.key == "kdzoo.entry"]
    entry.value = "another"


def test_the_graphs_of_parts_are_looked_into(package_copy: Package) -> None:
    package = rewritten(with_parts(package_copy), of_another_entry, PART)
    write_json(package.folder / PARTS, {**read_json(package.folder / PARTS), "parts": [listed(package.folder)]})
    with pytest.raises(IntegrityError, match=r"part1\.onnx: metadata kdzoo\.entry is 'another' in the graph"):
        verify_package(sealed(package))


def test_figures_on_the_card_that_are_not_measured_are_found(package_copy: Package) -> None:
    card = package_copy.folder / "README.md"
    text = card.read_text()
    value = next(line for line in text.splitlines() if line.strip().startswith("value: "))
    card.write_text(text.replace(value, f"{value.partition(':')[0]}: 0.9999", 1))
    with pytest.raises(IntegrityError, match=r"README\.md: model-index has other figures"):
        verify_package(reseal(package_copy))
    card.write_text(text.replace("license: ", "license_link: x\nlicense: ", 1))
    assert verify_package(reseal(package_copy))["files"], "other metadata may differ"


def one_more_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(onnx.helper.make_tensor_value_info("second", onnx.TensorProto.FLOAT, ["N"]))


def no_input(model: onnx.ModelProto) -> None:
    del model.graph.input[:]


@pytest.mark.parametrize(("change", "words"), [(one_more_input, "inputs is 2"), (no_input, "inputs is 0")])
def test_a_graph_with_another_number_of_inputs_is_refused(
    change: Callable[[onnx.ModelProto], object], words: str, package_copy: Package
) -> None:
    with pytest.raises(IntegrityError, match=words):
        verify_package(reseal(rewritten(package_copy, change)))


def without_opset(model: onnx.ModelProto) -> None:
    for entry in model.opset_import:
        entry.domain = "org.other"


def no_tensor(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = 99


@pytest.mark.parametrize(("change", "words"), [(without_opset, "which opset"), (no_tensor, "is no tensor of numbers")])
def test_a_graph_that_does_not_say_what_it_is_is_refused(
    change: Callable[[onnx.ModelProto], object], words: str, package_copy: Package
) -> None:
    with pytest.raises(IntegrityError, match=words):
        describe_onnx(rewritten(package_copy, change).folder / ONNX)


@pytest.mark.parametrize("verb", ["verify", "doctor"])
@pytest.mark.parametrize("parts", [None, 5, [5], "x", [{"path": "x", "bytes": "x"}]])
def test_parts_that_are_none_end_with_6(
    verb: str, parts: object, package_copy: Package, capsys: pytest.CaptureFixture[str]
) -> None:
    document = package_copy.document
    document["artifacts"][0]["details"]["parts"] = parts
    write_json(package_copy.folder / "manifest.json", document)
    with pytest.raises(SystemExit) as ending:
        main([verb, str(package_copy.folder)])
    assert ending.value.code == 6 and "artifacts[0].details.parts" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["labels.txt", "README.md"])
def test_a_text_that_is_no_text_is_refused(name: str, package_copy: Package) -> None:
    (package_copy.folder / name).write_bytes(b"\xff\xfe" * 10)
    with pytest.raises(IntegrityError, match=rf"{name} cannot be read as a text"):
        verify_package(reseal(package_copy))


@pytest.mark.parametrize(("field", "value"), [("format", "x; rm"), ("runtime", "On nx")])
def test_a_word_that_goes_into_a_command_is_one(field: str, value: str, package_copy: Package) -> None:
    document = package_copy.document
    document["artifacts"][0][field] = value
    write_json(package_copy.folder / "manifest.json", document)
    with pytest.raises(IntegrityError, match=rf"{field} cannot be '{value}'; it takes a word"):
        verify_package(Package.open(package_copy.folder))
