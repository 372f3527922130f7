"""An export can be made again from what it has left on record, and whatever comes out otherwise is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kdzoo.errors import DataError, EnvironmentProblem, GateFailed, IntegrityError, UsageError
from kdzoo.export import recorded as recorded_module
from kdzoo.export.formats import tensorrt_rtx
from kdzoo.export.package import Package
from kdzoo.export.publish import push
from kdzoo.export.recorded import Recorded, find_checkpoint, recorded_exports, records_of
from kdzoo.export.reproduce import (
    DIFFERS,
    LIBRARIES,
    NEEDS_DATA,
    NOT_COMPARED,
    NOT_MADE,
    SAME,
    Reproduced,
    check,
    choose,
    reproduce,
)
from kdzoo.tests.small_packages import files_of
from kdzoo.zoo.catalog import DEFAULT_ENTRY
from kdzoo.zoo.checkpoint import Checkpoint, describe_files
from kdzoo.zoo.files import read_json, write_json
from kdzoo.zoo.manifest import host_description, library_versions

Call = Callable[..., tuple[str, str]]
NOT_FILES = {"README.md", "metrics.json", "manifest.json"}


@pytest.fixture
def record(package_of: Callable[[str], Package]) -> Recorded:
    return Recorded.of(package_of("1"))


def states(result: Reproduced, state: str) -> list[str]:
    return [line.what for line in result.lines if line.state == state]


def change(package: Package, **changes: Any) -> None:
    """Another manifest, as somebody would write it who changes a file and its description."""
    document = {**package.document, **changes}
    write_json(package.folder / "manifest.json", {**document, "files": describe_files(package.folder)})


@pytest.mark.usefixtures("quick")
def test_what_nobody_has_changed_comes_out_the_same(
    package_copy: Package, toy_checkpoint: Checkpoint, toys_npz: Path, call: Call, tmp_path: Path
) -> None:
    words = ("reproduce", package_copy.folder, "--source", toy_checkpoint.folder, "--data", toys_npz, "--keep", "kept", "--json")
    document = json.loads(call(*words)[0])
    assert document["same"] and document["problem"] is None
    (found,) = document["exports"]
    lines = {line["what"]: line["state"] for line in found["lines"]}
    assert files_of(package_copy.folder) - NOT_FILES <= lines.keys() and set(lines.values()) == {SAME}
    assert {"student: params", "model.fp32.onnx: top1", "model.fp32.onnx: agreement", "torch: top5"} <= lines.keys()
    assert not any("latency" in what for what in lines)
    assert files_of(tmp_path / "kept") == files_of(package_copy.folder)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_another_option_gives_another_graph_and_the_same_weights(
    package_copy: Package, toy_checkpoint: Checkpoint, toys_npz: Path, call: Call, capfd: pytest.CaptureFixture[str]
) -> None:
    change(package_copy, options={**package_copy.document["options"], "input": "float"})
    with pytest.raises(SystemExit) as ended:
        call("reproduce", package_copy.folder, "--source", toy_checkpoint.folder, "--data", toys_npz, "--json")
    out, err = capfd.readouterr()
    document = json.loads(out)
    lines = document["exports"][0]["lines"]
    assert ended.value.code == 3 and not document["same"]
    assert [line["what"] for line in lines if line["state"] == DIFFERS] == ["model.fp32.onnx"]
    assert "1/model.fp32.onnx (nothing else that is recorded is other here" in err


@pytest.mark.usefixtures("quick")
def test_a_changed_weight_is_seen_versions_that_differ_are_told_and_missing_images_are_no_difference(
    package_copy: Package, toy_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = package_copy.folder / "model.safetensors"
    weights = load_file(path)
    name = min(weights)
    save_file({**weights, name: np.nextafter(weights[name], np.inf, dtype=weights[name].dtype)}, path)
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        records_of(str(package_copy.folder), print)
    provenance = package_copy.document["provenance"]
    change(package_copy, provenance={**provenance, "versions": {**provenance["versions"], "onnxruntime": "0.1"}})
    (changed,) = records_of(str(package_copy.folder), print)
    result = reproduce(changed, source=str(toy_checkpoint.folder))
    assert states(result, DIFFERS) == ["model.safetensors"] and "model.fp32.onnx" in states(result, SAME)
    assert {line.why for line in result.lines if line.what.endswith("top1")} == {NEEDS_DATA}
    with pytest.raises(GateFailed, match=r"model\.safetensors \(onnxruntime is .*, it was 0\.1"):
        check([result])


def test_another_checkpoint_is_refused(record: Recorded, toy_checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="is not the checkpoint that ahbf-resnet20-toy-1 was cut from"):
        find_checkpoint(record, DEFAULT_ENTRY, print)
    other = replace(record, source={**record.source, "weights_sha256": "0" * 64})
    with pytest.raises(IntegrityError, match="the record says 000000000000"):
        find_checkpoint(other, str(toy_checkpoint.folder), print)


def test_a_checkpoint_is_found_by_its_weights_among_runs_or_as_it_was_given(
    record: Recorded, toy_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"neither bundled nor below \./runs") as caught:
        find_checkpoint(record, None, print)
    assert "--source" in caught.value.hint
    given = replace(record, source={**record.source, "given": str(toy_checkpoint.folder)})
    assert find_checkpoint(given, None, print).folder == toy_checkpoint.folder
    shutil.copytree(toy_checkpoint.folder, tmp_path / "runs" / "mine" / "checkpoint")
    assert find_checkpoint(given, None, print).folder == Path("runs/mine/checkpoint")


def with_artifacts(record: Recorded, *rows: tuple[str, str, str, str, str | None]) -> Recorded:
    """The record with more artifacts: path, format, precision, runtime, capability."""
    keys = ("path", "format", "precision", "runtime", "compute_capability")
    further = {"sha256": "0" * 64, "companions": [], "reproducible": True, "grid": None}
    more = [{**dict(zip(keys, row, strict=True)), **further} for row in rows]
    files = {row["path"]: {"sha256": row["sha256"], "bytes": 1} for row in more}
    return replace(record, artifacts=[*record.artifacts, *more], files={**record.files, **files})


def test_what_this_machine_cannot_make_is_told_and_is_no_difference(
    record: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tensorrt_rtx, "installed_version", lambda runtime: None)
    engine = "model.int8.sm86.trt-rtx.engine"
    more = with_artifacts(
        record,
        ("model.int8.onnx", "onnx", "int8", "onnxruntime", None),
        ("model.int8.trt.onnx", "onnx", "int8", "tensorrt", None),
        (engine, "trt-rtx", "int8", "tensorrt_rtx", "8.6"),
        ("model.fp16.sm86.trt-rtx.engine", "trt-rtx", "fp16", "tensorrt_rtx", "8.6"),
    )
    assert more.made_formats["model.int8.trt.onnx"] == "trt-rtx", "it is made where engines are"
    chosen, problems, missing = choose(more, (), (), None)
    assert chosen == {"model.fp32.onnx"} and len(missing) == 1 and "pip install tensorrt-rtx" in missing[0]
    assert isinstance(problems["model.int8.onnx"], DataError) and problems["model.int8.onnx"].what == NEEDS_DATA
    assert isinstance(problems["model.fp16.sm86.trt-rtx.engine"], EnvironmentProblem)
    with pytest.raises(UsageError, match="has no such file"):
        choose(more, ("onnx",), ("bf16",), None)


def test_nothing_made_is_not_called_the_same(record: Recorded, toy_checkpoint: Checkpoint, call: Call, tmp_path: Path) -> None:
    only = with_artifacts(replace(record, artifacts=[]), ("model.int8.onnx", "onnx", "int8", "onnxruntime", None))
    result = reproduce(only, source=str(toy_checkpoint.folder))
    assert states(result, NOT_MADE) == ["model.int8.onnx"] and not states(result, SAME)
    with pytest.raises(DataError, match="without the images"):
        check([result])
    with pytest.raises(EnvironmentProblem, match="tensorrt_rtx is not installed"):
        check([replace(result, missing=("the package tensorrt_rtx is not installed",))])


def test_the_choice_that_was_measured_is_not_measured_again(record: Recorded) -> None:
    int8 = with_artifacts(record, ("model.int8.onnx", "onnx", "int8", "onnxruntime", None))
    int8.artifacts[-1]["grid"] = "signed"
    request = int8.request(("onnx",), ("int8",), None)
    assert request.options.int8_grid == "signed" and request.options.batch.sizes == (1, 8, 64)
    assert request.gates.max_drop == record.gates["max_drop"]


def test_a_record_is_kept_without_its_files_and_read_again(
    record: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded_module, "CARDS", tmp_path)
    write_json(tmp_path / "an-entry" / "exports.json", {"schema_version": 1, "exports": [record.to_dict()]})
    assert recorded_exports("an-entry") == [record] == records_of("an-entry", print) and recorded_exports("another") == []
    document = read_json(tmp_path / "an-entry" / "exports.json")
    del document["exports"][0]["options"]["calibration"]
    write_json(tmp_path / "an-entry" / "exports.json", document)
    with pytest.raises(IntegrityError, match="does not say how it was made: 'calibration' is missing"):
        recorded_exports("an-entry")


def test_what_is_published_has_the_record_of_the_package_that_it_was(
    record: Recorded, package_copy: Package, tmp_path: Path
) -> None:
    reference = push(package_copy.folder, f"file://{tmp_path / 'models' / 'org' / 'name'}").reference
    assert records_of(str(reference), print) == [record]


def test_a_checkpoint_is_not_something_that_can_be_compared(toy_checkpoint: Checkpoint) -> None:
    with pytest.raises(UsageError, match="has no recorded export") as caught:
        records_of(str(toy_checkpoint.folder), print)
    assert "kdzoo export" in caught.value.hint


@pytest.mark.slow
def test_a_part_of_the_export_that_was_not_made_is_counted_and_not_called_the_same(
    package_copy: Package, toy_checkpoint: Checkpoint, call: Call, quick: None
) -> None:
    int8 = {**package_copy.document["artifacts"][0], "path": "model.int8.onnx", "precision": "int8"}
    shutil.copyfile(package_copy.folder / "model.fp32.onnx", package_copy.folder / "model.int8.onnx")
    change(package_copy, artifacts=[*package_copy.document["artifacts"], int8])
    words = ("reproduce", package_copy.folder, "--source", toy_checkpoint.folder)
    document = json.loads(call(*words, "--json")[0])
    assert (document["same"], document["not_made"], document["problem"]) == (False, 1, None)
    lines = len(document["exports"][0]["lines"])
    assert f"1 of {lines} were not made: {NEEDS_DATA}" in call(*words)[0].splitlines()


@pytest.mark.usefixtures("quick")
def test_the_float32_file_of_the_bundled_entry_comes_out_as_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = recorded_exports(DEFAULT_ENTRY)
    if not found:
        pytest.skip("no export of the default entry is on record: python tools/record.py writes one")
    first, installed = found[0], library_versions(*LIBRARIES)
    other = [
        name for name in ("torch", "onnx", "onnxscript", "numpy", "safetensors") if installed.get(name) != first.versions[name]
    ]
    if other or first.host != host_description():
        pytest.skip(
            f"recorded elsewhere: {', '.join(other) or 'another processor'} differ; kdzoo reproduce {DEFAULT_ENTRY} tells more"
        )
    result = reproduce(first, formats=("onnx",), precisions=("fp32",))
    assert "model.fp32.onnx" in states(result, SAME) and not states(result, DIFFERS)
    assert all(line.why for line in result.lines if line.state == NOT_COMPARED)
