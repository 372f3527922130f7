"""`kdzoo verify` looks at every output, forgives a cascade what lies at its threshold, and works on packages that are not whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from kdzoo.cli import main
from kdzoo.errors import GateFailed, IntegrityError
from kdzoo.export import verify
from kdzoo.export.cascade import EXIT
from kdzoo.export.exporter import export
from kdzoo.export.onnx_file import seal_onnx
from kdzoo.export.package import Artifact, Package
from kdzoo.export.tensor_spec import TensorSpec
from kdzoo.export.verify import check_golden, verify_package
from kdzoo.tests.small_machines import reseal
from kdzoo.zoo.checkpoint import Checkpoint
from kdzoo.zoo.files import read_json, write_json
from kdzoo.zoo.preprocess import Preprocess
from kdzoo.zoo.target import Target

pytestmark = pytest.mark.slow

ONNX = "model.fp32.onnx"
Outputs = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def all_outputs(toy_checkpoint: Checkpoint, toys_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Every branch in one file, exported in a hurry."""
    folder = tmp_path_factory.mktemp("all") / "p"
    return export(toy_checkpoint, Target.parse("all"), output=folder, data=toys_npz, verify=False)


def test_a_package_that_was_not_verified_can_be_verified_later(all_outputs: Package, toys_npz: Path) -> None:
    assert not all_outputs.document["verified"]
    found = verify_package(all_outputs, toys_npz)["artifacts"][ONNX]
    assert found["golden"]["agreement"] == 1.0 and found["accuracy"]["n"] == 45
    names = all_outputs.artifacts[0].details["outputs"]
    assert set(found["outputs"]) == set(found["output_accuracy"]) == set(names) - {"logits"}


def test_a_change_in_one_of_several_outputs_is_found(all_outputs: Package, tmp_path: Path) -> None:
    package = Package.open(Path(shutil.copytree(all_outputs.folder, tmp_path / "p")))
    path = package.folder / ONNX
    model = onnx.load(path)
    (last,) = [node for node in model.graph.node if "logits_fused" in node.output]
    assert last.op_type == "Add"
    last.op_type = "Sub"
    path.write_bytes(seal_onnx(model))
    with pytest.raises(GateFailed, match="golden logits of logits_fused"):
        verify_package(reseal(package))


def test_an_output_that_is_worse_than_stated_fails(package_of: Callable[[str], Package]) -> None:
    package, artifact = package_of("1"), package_of("1").artifacts[0]
    stated = {"n": 45, "top1": 80.0, "top5": 99.0, "split": "test"}
    metrics = {"checkpoint": None, "artifacts": {ONNX: {"accuracy": stated, "outputs": {"logits_2": {"accuracy": stated}}}}}

    class Stated(Package):
        @property
        def metrics(self) -> dict[str, Any]:
            return metrics

    worse, same = {**stated, "top1": 70.0}, dict(stated)
    here = Stated(package.folder, package.document)
    assert verify.check_stated(here, artifact, {"accuracy": same, "output_accuracy": {"logits_2": same}}) == {}
    with pytest.raises(GateFailed, match=r"output logits_2, has top-1 70\.00 %"):
        verify.check_stated(here, artifact, {"accuracy": same, "output_accuracy": {"logits_2": worse}})


def test_accuracy_over_other_images_is_not_compared_and_that_is_told(
    package_copy: Package, toys_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = read_json(package_copy.folder / "metrics.json")
    row = metrics["artifacts"][ONNX]["accuracy"]
    row["n"] = 1234
    write_json(package_copy.folder / "metrics.json", metrics)
    card = package_copy.folder / "README.md"
    card.write_text(card.read_text().replace("images: 45", "images: 1234"))
    package = reseal(package_copy)
    assert verify_package(package, toys_npz)["artifacts"][ONNX]["not_compared"] == "stated over 1,234 images"
    main(["verify", str(package.folder), "--data", str(toys_npz)])
    assert "accuracy not compared: stated over 1,234 images" in capsys.readouterr().out


@pytest.fixture
def cascade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """`cascade(found, own=False)`: what is said of a cascade that gives `found` for eight images, of which the first four left at
    exit 1 and the others at 2 when it was exported; `own`: an eight-bit file, of which the logits were stored."""
    logits = np.arange(80, dtype=np.float32).reshape(8, 10) % 7
    stored = {"logits": logits, EXIT: np.array([1] * 4 + [2] * 4)}
    spec = TensorSpec("logits", "float32", ("N", 10))

    def run(found: Callable[[Outputs], None], own: bool = False) -> dict[str, Any]:
        precision = "int8" if own else "fp32"
        artifact = Artifact("model.onnx", "onnx", precision, "", 1, spec, spec, (1, 8, 64), "onnxruntime", "1")
        outputs = {name: values.copy() for name, values in stored.items()}
        found(outputs)
        arrays = {**stored, **({"model.onnx": logits, "logits": logits + 5} if own else {})}
        monkeypatch.setattr(verify, "read_arrays", lambda path: {"image": np.zeros(8)} if "inputs" in path.name else arrays)
        monkeypatch.setattr(verify, "run_file_outputs", lambda *arguments: outputs)
        package = Package(tmp_path, {"files": {}})
        monkeypatch.setattr(Package, "preprocess", Preprocess(32, 32, (0.5,) * 3, (0.5,) * 3))  # type: ignore[arg-type]
        return check_golden(package, artifact)

    return run


def shift(*rows: int, leave: int | None = None) -> Callable[[Outputs], None]:
    """Other logits for some images, and another exit."""

    def change(outputs: Outputs) -> None:
        for row in rows:
            outputs["logits"][row] += 3
            if leave is not None:
                outputs[EXIT][row] = leave

    return change


@pytest.mark.parametrize(
    ("found", "own", "compared"),
    [
        (shift(), False, 8),
        (shift(2, leave=2), False, 7),
        (shift(2), True, 7),
        (shift(), True, 8),
    ],
)
def test_one_image_at_the_threshold_may_leave_elsewhere(
    found: Callable[[Outputs], None], own: bool, compared: int, cascade: Callable[..., dict[str, Any]]
) -> None:
    parity = cascade(found, own)["golden"]
    assert (parity["n"], parity["max_abs_diff"]) == (compared, 0.0)


@pytest.mark.parametrize(("found", "own"), [(shift(2), False), (shift(1, 2, leave=2), False), (shift(1, 2), True)])
def test_other_logits_at_the_same_exit_or_of_several_images_fail(
    found: Callable[[Outputs], None], own: bool, cascade: Callable[..., dict[str, Any]]
) -> None:
    with pytest.raises(GateFailed, match="the largest difference is 3; "):
        cascade(found, own)


def test_logits_that_are_no_numbers_fail(cascade: Callable[..., dict[str, Any]]) -> None:
    def change(outputs: Outputs) -> None:
        outputs["logits"][0, 0] = np.nan

    for own in (False, True):
        with pytest.raises(GateFailed, match="1 are NaN"):
            cascade(change, own)


def test_a_package_that_was_pulled_in_part_is_verified_in_part(package_copy: Package) -> None:
    for name in ("model.safetensors", "config.json"):
        (package_copy.folder / name).unlink()
    left = [name for name in package_copy.document["files"] if name not in ("model.safetensors", "config.json")]
    write_json(package_copy.folder / "pulled.json", {"schema_version": 1, "files": left})
    found = verify_package(Package.open(package_copy.folder))
    assert (found["files"], found["files_of"]) == (len(left), len(left) + 2)
    (package_copy.folder / ONNX).unlink()
    with pytest.raises(IntegrityError, match=ONNX):
        verify_package(package_copy)
    write_json(package_copy.folder / "pulled.json", {"schema_version": 1, "files": [name for name in left if name != ONNX]})
    assert verify_package(package_copy)["artifacts"][ONNX] == {"checksum": "-", "not_run": "not here: it was not pulled"}


def test_openvino_files_are_proved_too(toy_checkpoint: Checkpoint, toys_npz: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    request = {"formats": ("openvino",), "data": toys_npz, "verify": False}
    package = export(toy_checkpoint, Target.parse("1"), output=tmp_path / "p", **request)
    assert verify_package(package)["artifacts"]["model.fp32.openvino.xml"]["golden"]["max_abs_diff"] < 1e-3
    weights = package.folder / "model.fp32.openvino.bin"
    content = np.frombuffer(weights.read_bytes(), np.float32).copy()
    content[len(content) // 3 : len(content) // 2] *= 1.5  # convolutions; what lies at the ends are the sizes of reshapes
    weights.write_bytes(content.tobytes())
    with pytest.raises(IntegrityError, match=r"openvino\.bin"):
        verify_package(package)
    with pytest.raises(GateFailed, match=r"openvino\.xml does not give the golden logits"):
        verify_package(reseal(package))


@pytest.mark.parametrize(
    ("name", "path", "value", "code"),
    [("metrics.json", "host", 5, 6), ("manifest.json", "entry", "", 6), ("manifest.json", "schema_version", 99, 4)],
)
def test_the_command_ends_with_the_code_of_what_is_wrong(
    name: str, path: str, value: Any, code: int, package_copy: Package, capsys: pytest.CaptureFixture[str]
) -> None:
    document = read_json(package_copy.folder / name)
    document[path] = value
    write_json(package_copy.folder / name, document)
    if name != "manifest.json":
        reseal(package_copy)
    with pytest.raises(SystemExit) as ending:
        main(["verify", str(package_copy.folder)])
    assert ending.value.code == code
    assert name in capsys.readouterr().err
