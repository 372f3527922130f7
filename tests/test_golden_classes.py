"""Golden images of an eight-bit file whose own logits nobody could store: its classes are compared with those of torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdzoo.errors import GateFailed
from kdzoo.export import verify
from kdzoo.export.package import Artifact, Package
from kdzoo.export.tensor_spec import TensorSpec
from kdzoo.zoo.preprocess import Preprocess

EXPECTED = np.eye(8, 10, dtype=np.float32) * 9


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    """`golden(logits)`: the agreement of an eight-bit cascade that gives these for the eight images."""
    spec = TensorSpec("logits", "float32", ("N", 10))
    artifact = Artifact("model.engine", "trt-rtx", "int8", "", 1, spec, spec, (1, 8, 64), "tensorrt_rtx", "1")
    package = Package(tmp_path, {"files": {}, "gates": {"min_agreement": {"int8": 0.9}}})
    stored = {"logits": EXPECTED, "exit": np.arange(8) % 2}
    monkeypatch.setattr(verify, "read_arrays", lambda path: {"image": np.zeros(8)} if "inputs" in path.name else stored)
    monkeypatch.setattr(Package, "preprocess", Preprocess(32, 32, (0.5,) * 3, (0.5,) * 3))  # type: ignore[arg-type]

    def run(logits: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> float:
        outputs = {"logits": logits, "exit": 1 - stored["exit"]}
        monkeypatch.setattr(verify, "run_file_outputs", lambda *arguments: outputs)
        found: float = verify.check_golden(package, artifact)["golden"]["agreement"]
        return found

    return run


def test_logits_may_be_far_off_and_one_class_another(golden: Callable[..., float]) -> None:
    assert golden(EXPECTED * 2) == 1.0
    assert golden(np.concatenate([np.roll(EXPECTED[:1], 1), EXPECTED[1:]])) == 7 / 8


def test_two_other_classes_or_what_is_no_number_fail(golden: Callable[..., float]) -> None:
    with pytest.raises(GateFailed, match="golden classes: 2 of 8 have another class"):
        golden(np.concatenate([np.roll(EXPECTED[:2], 1), EXPECTED[2:]]))
    harmed = EXPECTED.copy()
    harmed[0, 5] = np.nan
    with pytest.raises(GateFailed, match="1 logits are not finite"):
        golden(harmed)
