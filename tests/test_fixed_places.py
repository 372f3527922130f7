"""Where libraries and heaps lie in memory does not depend on paths, on other packages or on chance, and so engines do not."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import pytest

from kdzoo.export import tensorrt_build as build
from kdzoo.tests.small_engines import needs_rtx, write_classifier

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")
ORDER = {"runtime": "tensorrt_rtx", "capability": "8.6", "batch": (1, 8, 64)}


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("graph") / "model.onnx")


@pytest.fixture(scope="module")
def digest(graph: Path) -> str:
    return digest_of(graph)


def digest_of(graph: Path) -> str:
    answer, engine = build._in_fresh_process(graph, ORDER)
    assert answer["reproducible"], "the libraries could not be put in their places"
    return hashlib.sha256(engine).hexdigest()


@needs_rtx
@linux
@pytest.mark.parametrize("length", [3, 171])
def test_an_engine_is_the_same_wherever_the_libraries_are_installed(
    graph: Path, digest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    spec = find_spec("tensorrt_rtx_libs")
    assert spec is not None and spec.origin is not None
    place = tmp_path / ("x" * length)
    place.mkdir()
    for package in Path(spec.origin).parent.parent.glob("tensorrt_rtx*"):
        (place / package.name).symlink_to(package)
    for number in range(length):
        (place / f"another_package_{number}.py").touch()
    monkeypatch.syspath_prepend(str(place))
    assert digest_of(graph) == digest


@needs_rtx
@linux
def test_an_engine_is_the_same_where_addresses_are_drawn_by_chance(
    graph: Path, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chance may also take a place that is needed; then the engine must not be called reproducible."""
    monkeypatch.setattr(build, "fixed_addresses", nullcontext)
    found = [build._in_fresh_process(graph, ORDER) for _ in range(3)]
    digests = [hashlib.sha256(engine).hexdigest() for answer, engine in found if answer["reproducible"]]
    assert digests and set(digests) == {digest}


@linux
def test_what_is_mapped_after_a_line_was_drawn_lies_below_it_whatever_was_mapped_before() -> None:
    code = """if True:
        import ctypes, mmap, sys
        from kdzoo.export.fixed_places import LINE, reserve_above
        before = mmap.mmap(-1, int(sys.argv[1]))
        reserve_above(LINE)
        reserve_above(LINE)  # what is reserved already is no obstacle
        after = mmap.mmap(-1, 1 << 24)
        print(LINE - ctypes.addressof(ctypes.c_char.from_buffer(after)))
    """
    gaps = [
        subprocess.run([sys.executable, "-c", code, str(n)], capture_output=True, text=True, check=False) for n in (4096, 9 << 20)
    ]
    assert [gap.stdout.strip() for gap in gaps] == [str(1 << 24)] * 2, gaps
