"""The Python programs of a card do what the card says, for every kind of file; of the others the syntax is checked."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdzoo.export.cards.package_card import package_card
from kdzoo.export.cards.programs import run_engine
from kdzoo.export.cards.usage import classify, run_openvino
from kdzoo.export.exporter import export
from kdzoo.export.format import Batch, ExportOptions
from kdzoo.export.gates import Gates
from kdzoo.export.onnx_file import OnnxRunner
from kdzoo.export.package import Artifact, Package
from kdzoo.tests.card_programs import programs, run_program
from kdzoo.tests.small_packages import quick_exports
from kdzoo.tests.small_runs import recipe_for, train
from kdzoo.zoo.checkpoint import Checkpoint
from kdzoo.zoo.files import read_json, write_json
from kdzoo.zoo.preprocess import Preprocess
from kdzoo.zoo.target import Target

pytestmark = pytest.mark.slow

OPEN = Gates.of(100.0, 0.0)
FLOATS = ExportOptions(precisions=("fp32", "fp16"), batch=Batch(3, 3, 3), input="float")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wider than high, and lying on its side."""
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    soft = np.random.default_rng(3).integers(0, 256, (9, 14, 3)).repeat(5, axis=0).repeat(5, axis=1)
    image = Image.fromarray(soft.astype(np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    return path


@pytest.fixture(scope="module")
def floats(toy_checkpoint: Checkpoint, toys_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Normalised input, batches of three only, in two precisions."""
    with quick_exports():
        folder = tmp_path_factory.mktemp("floats") / "package"
        return export(toy_checkpoint, Target.parse("1"), options=FLOATS, gates=OPEN, output=folder, data=toys_npz)


@pytest.fixture(scope="module")
def cascade(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """In float32 and in eight bits."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("cascade")
    run = train(recipe_for(method="dbfskd", backbone="resnet8", epochs=3, holdout=16), colours, folder / "run")
    options = ExportOptions(precisions=("fp32", "int8"), batch=Batch(1, 4, 16), calibration_images=32, int8_grid="unsigned")
    with quick_exports():
        return export(
            Checkpoint.open(run.folder), Target.parse("cascade"), options=options, gates=OPEN, output=folder / "package",
            data=colours, cascade_loss=60.0, formats=("onnx", "parts"),
        )  # fmt: skip


@pytest.fixture(params=["one branch", "all branches", "floats", "cascade"])
def package(request: pytest.FixtureRequest, package_of: Callable[[str], Package]) -> Package:
    made: Package = (
        package_of({"one branch": "1", "all branches": "all"}[request.param])
        if request.param.endswith(("branch", "branches"))
        else request.getfixturevalue(request.param)
    )
    return made


def card_of(package: Package, artifacts: list[Artifact] | None = None) -> str:
    chosen = package.artifacts if artifacts is None else artifacts
    return package_card(package.document, package.metrics, chosen, package.labels, package.preprocess.to_dict())


def test_the_first_program_names_the_class_that_kdzoo_names(package: Package, picture: Path, tmp_path: Path) -> None:
    program = programs(card_of(package))[0]
    done = run_program(program, package.folder, tmp_path, picture)
    assert done.returncode == 0, done.stderr
    path = re.search(r'InferenceSession\("(.*?)"', program)[1]  # type: ignore[index]
    check_classes(done.stdout, package, next(a for a in package.artifacts if a.path == path), package.preprocess, picture)


def check_classes(stdout: str, package: Package, artifact: Artifact, preprocess: Preprocess, picture: Path) -> None:
    """The lines of `classify` are the probabilities that kdzoo's own reading and running of the picture gives."""
    from kdzoo.export.outputs import as_input

    image = preprocess.read(picture)[None].repeat(artifact.batch[0], axis=0)
    kind = "float" if artifact.input.dtype == "float32" else "uint8"
    logits = OnnxRunner(package.folder / artifact.path)(as_input(image, preprocess, kind))[0].astype(np.float64)
    chances = np.exp(logits) / np.exp(logits).sum()
    lines = [line for line in stdout.splitlines() if not line.startswith("left at exit")]
    best = np.argsort(-chances)[:5]
    found = [line.split(" ", 1) for line in lines]
    assert [label for _, label in found] == [package.labels[k] for k in best]
    assert [float(chance) for chance, _ in found] == pytest.approx(chances[best], abs=2e-4)


def test_a_picture_is_scaled_by_its_short_side_where_the_network_wants_it(
    package_copy: Package, picture: Path, tmp_path: Path
) -> None:
    wanted = Preprocess(32, 32, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), resize=40)
    write_json(package_copy.folder / "preprocess.json", wanted.to_dict())
    program = classify(package_copy.artifact(), wanted.to_dict())
    done = run_program(program, package_copy.folder, tmp_path, picture)
    assert done.returncode == 0, done.stderr
    check_classes(done.stdout, package_copy, package_copy.artifact(), wanted, picture)


def test_the_second_program_proves_the_golden_images(package: Package, tmp_path: Path) -> None:
    done = run_program(programs(card_of(package))[1], package.folder, tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(re.fullmatch(r"largest difference (\S+)\n", done.stdout)[1]) <= 1e-4  # type: ignore[index]


@pytest.mark.parametrize(("kind", "precision"), [("floats", "fp16"), ("cascade", "int8")])
def test_a_narrow_file_alone_is_proved_as_far_as_its_precision_goes(
    kind: str, precision: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    package: Package = request.getfixturevalue(kind)
    card = card_of(package, [package.artifact("onnx", precision)])
    done = run_program(programs(card)[1], package.folder, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"model.{precision}.onnx" in programs(card)[1] and "assert worst <= 0.5" in programs(card)[1]


def test_a_cascade_says_at_which_exit_a_picture_left(cascade: Package, picture: Path, tmp_path: Path) -> None:
    done = run_program(programs(card_of(cascade))[0], cascade.folder, tmp_path, picture)
    assert re.match(r"left at exit [123]\n", done.stdout), done.stdout + done.stderr


def test_the_parts_of_a_cascade_answer_as_the_one_file_does(cascade: Package, tmp_path: Path) -> None:
    (program,) = [p for p in programs(card_of(cascade)) if "run_cascade" in p]
    done = run_program(program, cascade.folder, tmp_path)
    assert done.returncode == 0, done.stderr
    found = OnnxRunner(cascade.folder / "model.fp32.onnx").everything(cascade.golden()[0])
    assert done.stdout.strip() == f"{found['logits'].argmax(axis=1)} {found['exit']}"


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed: pip install openvino")
def test_the_openvino_program_gives_the_golden_classes(package_of: Callable[[str], Package], tmp_path: Path) -> None:
    package = package_of("1")  # its ONNX, which OpenVINO reads as well as a file of its own
    done = run_program(run_openvino(package.artifact(), package.preprocess.to_dict()), package.folder, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(package.golden()[1].argmax(axis=1))


@pytest.mark.parametrize("input", ["uint8", "float"])
@pytest.mark.parametrize("batch", [(1, 8, 64), (4, 4, 4), (16, 16, 16)])
def test_the_engine_program_is_python(batch: tuple[int, int, int], input: str, package_of: Callable[[str], Package]) -> None:
    described = {**package_of("1").document["artifacts"][0], "path": "m.engine", "runtime": "tensorrt_rtx", "batch": batch}
    described["input"] = {**described["input"], "dtype": "uint8" if input == "uint8" else "float32"}
    program = run_engine(Artifact.from_dict(described), package_of("1").preprocess.to_dict())
    compile(program, "engine.py", "exec")
    assert "import tensorrt_rtx as trt" in program and '"m.engine"' in program
    assert ("transpose(0, 3, 1, 2)" in program) == (input == "float")
    assert ("[:4]" in program, "np.resize" in program) == (batch[2] == 4, batch[0] == 16)


def test_a_card_without_a_file_for_onnxruntime_says_so(package_of: Callable[[str], Package]) -> None:
    described = {**package_of("1").document["artifacts"][0], "path": "model.bf16.onnx", "precision": "bf16"}
    card = card_of(package_of("1"), [Artifact.from_dict(described)])
    assert "No file of this package is for onnxruntime" in card and not programs(card)
    assert read_json(package_of("1").folder / "preprocess.json")["width"] == 32
