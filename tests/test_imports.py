"""Listing, inspecting and serving must not wait for torch: these modules do without it until a function needs it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "torchvision", "onnx", "onnxruntime", "matplotlib"}


@pytest.mark.parametrize(
    "module",
    [
        "kdzoo",
        "kdzoo.cli",
        "kdzoo.zoo.manifest",
        "kdzoo.zoo.checkpoint",
        "kdzoo.zoo.catalog",
        "kdzoo.zoo.datasets",
        "kdzoo.zoo.preprocess",
        "kdzoo.export.package",
        "kdzoo.export.format",
        "kdzoo.export.source",
        "kdzoo.export.select",
        "kdzoo.export.candidates",
        "kdzoo.zoo.hub",
    ],
)
def test_importing_it_does_not_import_the_heavy_libraries(module: str) -> None:
    code = f"import {module}, json, sys; print(json.dumps([m for m in sys.modules if '.' not in m]))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    loaded = HEAVY & set(json.loads(ran.stdout))
    assert not loaded, f"importing {module} loads {sorted(loaded)}; see python -X importtime -c 'import {module}'"
