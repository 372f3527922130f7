"""`kdzoo verify`: a package that is whole byte for byte and says what cannot be is refused, with the file and the field."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from kdzoo.errors import IntegrityError
from kdzoo.export.consistency import check_story
from kdzoo.export.onnx_file import seal_onnx
from kdzoo.export.package import Package
from kdzoo.export.verify import verify_package
from kdzoo.tests.small_machines import reseal
from kdzoo.zoo.files import read_json, write_json

ONNX = "model.fp32.onnx"
GONE = object()


def put(document: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        document = document[key]
    if value is GONE:
        del document[path[-1]]
    else:
        document[path[-1]] = value


MANIFEST_ROWS = [
    (("entry",), "", "entry cannot be ''"),
    (("target",), 3, "target cannot be"),
    (("source", "weights_sha256"), "abc", "source.weights_sha256"),
    (("source", "epochs"), -1, "source.epochs cannot be -1"),
    (("source", "given"), 5, "source.given"),
    (("tensors", "kept"), "all", "tensors.kept"),
    (("tensors", "dropped"), [1], "tensors.dropped[0]"),
    (("options", "batch"), [8, 1, 64], "options.batch"),
    (("options", "input"), "bgr", "options.input"),
    (("options", "opset"), 0, "options.opset"),
    (("gates", "max_drop"), {"fp32": "none"}, "gates.max_drop['fp32']"),
    (("gates", "min_agreement", "fp32"), 2, "gates.min_agreement['fp32']"),
    (("gates", "max_drop"), {}, "gates.max_drop has none for fp32"),
    (("verified",), "yes", "verified"),
    (("provenance", "versions"), {"torch": 2}, "provenance.versions['torch']"),
    (("provenance", "command"), GONE, "provenance.command is missing"),
    (("provenance", "git_commit"), GONE, "provenance.git_commit is missing"),
    (("files", "labels.txt", "sha256"), "ABC", "files['labels.txt'].sha256"),
    (("files", "labels.txt"), GONE, "files lack labels.txt"),
    (("artifacts", 0, "path"), GONE, "artifacts[0].path is missing"),
    (("artifacts", 0, "path"), "other.onnx", "is not among its files"),
    (("artifacts", 0, "precision"), "fp8", "artifacts[0].precision cannot be 'fp8'"),
    (("artifacts", 0, "sha256"), "0" * 64, f"{ONNX}: sha256"),
    (("artifacts", 0, "bytes"), 5, f"{ONNX}: bytes is 5"),
    (("artifacts", 0, "input", "dtype"), "int8", "artifacts[0].input.dtype"),
    (("artifacts", 0, "input", "shape"), ["N", 16, 16, 3], f"{ONNX}: input.shape is ['N', 16, 16, 3]"),
    (("artifacts", 0, "output", "shape"), ["N", 11], f"{ONNX}: output.shape is ['N', 11]"),
    (("artifacts", 0, "batch"), [0, 8, 64], "artifacts[0].batch"),
    (("artifacts", 0, "batch"), [8, 8, 8], f"{ONNX}: input.shape"),
    (("artifacts", 0, "compute_capability"), "86", "artifacts[0].compute_capability"),
    (("artifacts", 0, "details"), [], "artifacts[0].details"),
    (("artifacts", 0, "details", "sidecar"), "absent.json", "details.sidecar is 'absent.json'"),
    (("artifacts", 0, "details", "opset"), 19, "opset is 20 in the graph and 19 in the package"),
    (("options", "input"), "float", "input.dtype is uint8; options.input is float"),
    (("entry",), "another", "entry is 'ahbf-resnet20-toy'; the other files say 'another'"),
    (("source", "weights_sha256"), "0" * 64, "metadata kdzoo.source_sha256"),
]
DOCUMENT_ROWS = [
    ("metrics.json", ("host",), None, "host cannot be None"),
    ("metrics.json", ("target",), "2", "target is '2'; the other files say '1'"),
    ("metrics.json", ("student", "params"), 1.5, "student.params"),
    ("metrics.json", ("reference", "top1"), 101, "reference.top1 cannot be 101; it takes percent"),
    ("metrics.json", ("reference", "n"), 0, "reference.n"),
    ("metrics.json", ("checkpoint",), 5, "checkpoint cannot be 5; it takes an object"),
    ("metrics.json", ("artifacts", ONNX, "parity", "agreement"), 1.5, "parity.agreement"),
    ("metrics.json", ("artifacts", ONNX, "accuracy", "split"), GONE, "accuracy.split is missing"),
    ("metrics.json", ("artifacts", ONNX, "latency", 0, "p50_ms"), "1", "latency[0].p50_ms cannot be '1'"),
    ("metrics.json", ("artifacts", ONNX, "latency", 0, "batch"), 0, "latency[0].batch"),
    ("metrics.json", ("artifacts", ONNX, "bytes"), 5, ".bytes is 5; manifest.json says"),
    ("metrics.json", ("artifacts", ONNX, "dominated_by"), "x.onnx", "dominated_by is 'x.onnx'"),
    ("metrics.json", ("artifacts", ONNX), {}, "neither figures nor the reason"),
    ("metrics.json", ("artifacts", ONNX), GONE, f"artifacts['{ONNX}'] is missing"),
    ("metrics.json", ("artifacts", "other.onnx"), {"not_run": "x"}, "artifacts['other.onnx'] is of no file"),
    ("config.json", ("method",), "kd", "method is 'kd'; the other files say 'ahbf'"),
    ("config.json", ("num_classes",), 11, "num_classes is 11"),
    ("config.json", ("num_classes",), "10", "num_classes cannot be '10'"),
    ("config.json", ("method_config",), None, "method_config"),
    ("config.json", ("weights_sha256",), "0" * 64, "weights_sha256 is"),
    ("config.json", ("target",), "2", "target is '2'"),
    ("preprocess.json", ("mean",), [0.5, 0.5], "mean cannot be [0.5, 0.5]; it takes three numbers"),
    ("preprocess.json", ("std",), [1, 1, 0], "std cannot be"),
    ("preprocess.json", ("height",), GONE, "height is missing"),
    ("preprocess.json", ("height",), 16, "input.shape is ['N', 32, 32, 3]"),
    ("preprocess.json", ("mean",), [0.5, 0.5, 0.5], "metadata kdzoo.preprocess"),
    ("preprocess.json", ("crop",), "left", "crop cannot be 'left'"),
]


def words_of(package: Package) -> str:
    with pytest.raises(IntegrityError) as caught:
        verify_package(Package.open(package.folder))
    assert caught.value.hint, "no next step"
    return caught.value.what


@pytest.mark.parametrize(("path", "value", "words"), MANIFEST_ROWS, ids=[str(n) for n in range(len(MANIFEST_ROWS))])
def test_a_field_of_the_manifest_that_cannot_be_is_named(
    path: tuple[Any, ...], value: Any, words: str, package_copy: Package
) -> None:
    document = package_copy.document
    put(document, path, value)
    write_json(package_copy.folder / "manifest.json", document)
    assert words in words_of(package_copy)


@pytest.mark.parametrize(("name", "path", "value", "words"), DOCUMENT_ROWS, ids=[str(n) for n in range(len(DOCUMENT_ROWS))])
def test_a_field_of_another_document_that_cannot_be_is_named(
    name: str, path: tuple[Any, ...], value: Any, words: str, package_copy: Package
) -> None:
    document = read_json(package_copy.folder / name)
    put(document, path, value)
    write_json(package_copy.folder / name, document)
    what = words_of(reseal(package_copy))
    assert words in what
    if "metadata" not in words and "shape" not in words:
        assert name in what


def test_a_file_that_the_manifest_lists_twice_is_named(package_copy: Package) -> None:
    document = package_copy.document
    document["artifacts"] *= 2
    write_json(package_copy.folder / "manifest.json", document)
    assert "artifacts lists a file twice" in words_of(package_copy)


def lines(text: str) -> Callable[[bytes], bytes]:
    return lambda old: text.encode()


def arrays(**changed: Any) -> Callable[[bytes], bytes]:
    """The `.npz` with other arrays; a function changes the one that is there."""

    def change(old: bytes) -> bytes:
        with np.load(io.BytesIO(old)) as found:
            content = dict(found)
        for name, value in changed.items():
            content[name] = value(content[name]) if callable(value) else value
        new = io.BytesIO()
        np.savez(new, **{name: value for name, value in content.items() if value is not None})
        return new.getvalue()

    return change


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("labels.txt", lines("a\nb\n"), "num_classes is 10; the other files say 2"),
        ("golden/inputs.npz", arrays(image=lambda x: x.astype(np.float32)), "has 'image' float32 [8, 32, 32, 3]"),
        ("golden/inputs.npz", arrays(image=lambda x: x[:, :16]), "it takes uint8 N 32 32 3"),
        ("golden/inputs.npz", arrays(image=None, other=np.zeros(1)), "has no array 'image'"),
        ("golden/inputs.npz", lines("no archive"), "golden/inputs.npz cannot be read"),
        ("golden/expected.npz", arrays(logits=lambda x: x[:, :9]), "logits is float32 [8, 9]; it takes float32 [8, 10]"),
        ("golden/expected.npz", arrays(logits=lambda x: x[:4]), "logits is float32 [4, 10]"),
        ("golden/expected.npz", arrays(logits=lambda x: x.astype(np.float64)), "logits is float64"),
        ("golden/expected.npz", arrays(exit=np.ones(3, np.int64)), "exit is int64 [3]"),
        ("golden/expected.npz", arrays(logits=None, other=np.zeros((8, 10), np.float32)), "has no array 'logits'"),
        ("README.md", lines("# a card without a head\n"), "no head that names kdzoo"),
        ("README.md", lines("---\nlibrary_name: [\n---\n"), "no YAML"),
        ("README.md", lines("---\nlibrary_name: timm\n---\n"), "no head that names kdzoo"),
    ],
)
def test_labels_golden_files_and_card_are_looked_into(
    name: str, change: Callable[[bytes], bytes], words: str, package_copy: Package
) -> None:
    path = package_copy.folder / name
    path.write_bytes(change(path.read_bytes()))
    what = words_of(reseal(package_copy))
    assert words in what
    assert name in what or name == "labels.txt"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("kdzoo.labels", '["x"]', "metadata kdzoo.labels is ['x'] in the graph"),
        ("kdzoo.labels", "x", "metadata kdzoo.labels is 'x'"),
        ("kdzoo.preprocess", "{}", "metadata kdzoo.preprocess is {}"),
        ("kdzoo.target", "2", "metadata kdzoo.target is '2' in the graph and '1' in the package"),
        ("kdzoo.entry", None, "metadata kdzoo.entry is None"),
        ("kdzoo.input", "float", "metadata kdzoo.input"),
    ],
)
def test_what_the_graph_says_of_itself_is_compared(key: str, value: str | None, words: str, package_copy: Package) -> None:
    path = package_copy.folder / ONNX
    model = onnx.load(path)
    said = {entry.key: entry.value for entry in model.metadata_props if entry.key != key}
    del model.metadata_props[:]
    for name, text in {**said, **({key: value} if value is not None else {})}.items():
        model.metadata_props.add(key=name, value=text)
    path.write_bytes(seal_onnx(model))
    what = words_of(resealed_rows(package_copy))
    assert words in what and ONNX in what


def resealed_rows(package: Package) -> Package:
    """The ONNX file has another size then, of which the metrics speak, too."""
    path = package.folder / "metrics.json"
    document = read_json(path)
    document["artifacts"][ONNX]["bytes"] = (package.folder / ONNX).stat().st_size
    write_json(path, document)
    return reseal(package)


def test_the_untouched_package_is_consistent_and_stays_so_when_it_is_sealed_again(package_copy: Package) -> None:
    check_story(package_copy)
    check_story(reseal(package_copy))


def test_a_message_stays_short(package_copy: Package, tmp_path: Path) -> None:
    document = package_copy.document
    document["entry"] = ["x"] * 1000
    write_json(package_copy.folder / "manifest.json", document)
    with pytest.raises(IntegrityError) as caught:
        verify_package(Package(package_copy.folder, document))
    assert len(caught.value.what) < 300
