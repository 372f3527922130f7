"""The C++ program of a card compiles and gives the golden logits; without onnxruntime's C++ package its syntax is checked.

ONNXRUNTIME_CPP names the unpacked package: `include/onnxruntime_cxx_api.h` and `lib/libonnxruntime.so`. Headers of Debian
(`libonnxruntime-dev`) with the library out of the Python wheel (`onnxruntime/capi/libonnxruntime.so.*`) do, too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdzoo.export.cards.programs import cpp
from kdzoo.export.exporter import export
from kdzoo.export.format import Batch, ExportOptions
from kdzoo.export.package import Artifact, Package
from kdzoo.tests.card_programs import programs
from kdzoo.tests.small_packages import quick_exports
from kdzoo.zoo.checkpoint import Checkpoint
from kdzoo.zoo.target import Target

DECLARATIONS = Path(__file__).resolve().parent / "cpp"
LIBRARY = os.environ.get("ONNXRUNTIME_CPP")
WARNINGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror")
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ here: apt-get install g++")


PAIRS = ExportOptions(batch=Batch(2, 2, 2), input="float")


def check_syntax(program: str, folder: Path, include: Path) -> subprocess.CompletedProcess[str]:
    (folder / "classify.cpp").write_text(program)
    command = ["g++", "-fsyntax-only", *WARNINGS, "-I", str(include), str(folder / "classify.cpp")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_the_program_is_cpp(kind: str, package_of: Callable[[str], Package], tmp_path: Path) -> None:
    package = package_of("1")
    (program,) = programs((package.folder / "README.md").read_text(), "cpp")
    if kind == "float":
        described = package.document["artifacts"][0]
        floats = {**described, "batch": [2, 2, 2], "input": {**described["input"], "dtype": "float32"}}
        program = cpp(Artifact.from_dict(floats), package.preprocess.to_dict())
    done = check_syntax(program, tmp_path, DECLARATIONS if LIBRARY is None else Path(LIBRARY) / "include")
    assert done.returncode == 0, done.stderr


def test_the_declarations_refuse_what_the_library_does_not_have(package_of: Callable[[str], Package], tmp_path: Path) -> None:
    package = package_of("1")
    program = cpp(package.artifact(), package.preprocess.to_dict())
    wrong = program.replace("CreateTensor<uint8_t>", "MakeTensor<uint8_t>")
    assert wrong != program and check_syntax(wrong, tmp_path, DECLARATIONS).returncode != 0


@pytest.mark.skipif(LIBRARY is None, reason="ONNXRUNTIME_CPP does not name onnxruntime's C++ package")
@pytest.mark.parametrize("options", [ExportOptions(), PAIRS], ids=["uint8", "float"])
def test_the_program_gives_the_golden_logits(
    options: ExportOptions, toy_checkpoint: Checkpoint, toys_npz: Path, tmp_path: Path
) -> None:
    assert LIBRARY is not None
    with quick_exports():
        package = export(toy_checkpoint, Target.parse("1"), options=options, output=tmp_path / "package", data=toys_npz)
    (program,) = programs((package.folder / "README.md").read_text(), "cpp")
    (tmp_path / "classify.cpp").write_text(program)
    lib = f"{LIBRARY}/lib"
    command = ["g++", *WARNINGS, "classify.cpp", "-I", f"{LIBRARY}/include", "-L", lib, f"-Wl,-rpath,{lib}", "-lonnxruntime"]
    done = subprocess.run([*command, "-o", "classify"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    images, expected = package.golden()
    images[3].tofile(tmp_path / "picture.rgb")
    run = [str(tmp_path / "classify"), str(tmp_path / "picture.rgb")]
    label, *logits = subprocess.run(run, cwd=package.folder, capture_output=True, text=True, check=True).stdout.splitlines()
    assert label == package.labels[int(expected[3].argmax())]
    assert np.array(logits, np.float32) == pytest.approx(expected[3], abs=1e-4)
    bad = subprocess.run(run[:1], cwd=package.folder, capture_output=True, text=True, check=False)
    assert bad.returncode == 2 and "give a file of 32 x 32 x 3 bytes" in bad.stderr
