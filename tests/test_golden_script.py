"""Row 8: twenty lines of NumPy and onnxruntime, which know nothing of kdzoo, give the stored logits to 1e-4."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdzoo.export.package import GOLDEN_EXPECTED, Package
from kdzoo.tests.card_programs import programs, run_program

SCRIPT = """
import numpy as np
import onnxruntime

images = np.load("golden/inputs.npz")["image"]
expected = np.load("golden/expected.npz")["logits"]
session = onnxruntime.InferenceSession("model.fp32.onnx", providers=["CPUExecutionProvider"])
for k, image in enumerate(images):
    (logits,) = session.run(["logits"], {"image": image[None]})
    np.testing.assert_allclose(logits[0], expected[k], rtol=0, atol=1e-4)
(together,) = session.run(["logits"], {"image": images})
np.testing.assert_allclose(together, expected, rtol=0, atol=1e-4)
print(len(images), "images proved")
"""


def test_a_script_without_kdzoo_gives_the_stored_logits(package_of: Callable[[str], Package], tmp_path: Path) -> None:
    done = run_program(SCRIPT, package_of("1").folder, tmp_path)
    assert (done.returncode, done.stdout) == (0, "8 images proved\n"), done.stderr


def test_the_script_on_the_card_is_short_and_imports_nothing_else(package_of: Callable[[str], Package], tmp_path: Path) -> None:
    program = programs((package_of("1").folder / "README.md").read_text())[1]
    imported = {alias.name for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Import) for alias in node.names}
    assert imported == {"numpy", "onnxruntime"} and len(program.splitlines()) <= 20
    done = run_program(program, package_of("1").folder, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", ["here", "on the card"])
def test_other_logits_are_noticed(script: str, package_copy: Package, tmp_path: Path) -> None:
    path = package_copy.folder / GOLDEN_EXPECTED
    with np.load(path) as arrays:
        changed = {name: values + np.float32(2e-4) for name, values in arrays.items()}
    np.savez(path, **changed)
    program = SCRIPT if script == "here" else programs((package_copy.folder / "README.md").read_text())[1]
    done = run_program(program, package_copy.folder, tmp_path)
    assert done.returncode == 1 and "AssertionError" in done.stderr
