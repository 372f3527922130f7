"""`kdzoo select` over packages and over the catalog: what is measured is compared, and what is not is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kdzoo
from kdzoo.cli import main
from kdzoo.errors import UnknownName
from kdzoo.export.package import Package
from kdzoo.zoo.catalog import DEFAULT_ENTRY, entries
from kdzoo.zoo.files import read_json, sha256, write_json

Call = Callable[..., tuple[str, str]]
PackageOf = Callable[[str], Package]


@pytest.fixture
def family(package_of: PackageOf, tmp_path: Path) -> Path:
    """A folder of two packages, the second with an engine that was built and not run."""
    folder = tmp_path / "family"
    for target in ("1", "2"):
        shutil.copytree(package_of(target).folder, folder / target)
    manifest = read_json(folder / "2" / "manifest.json")
    engine = {**manifest["artifacts"][0], "path": "model.engine", "format": "trt-rtx", "runtime": "tensorrt_rtx"}
    (folder / "2" / "model.engine").write_bytes(b"vtrt")
    metrics = read_json(folder / "2" / "metrics.json")
    metrics["artifacts"]["model.engine"] = {"not_run": "built, not run: no GPU"}
    rewrite(folder / "2", manifest, metrics, engine)
    return folder


def rewrite(folder: Path, manifest: dict[str, Any], metrics: dict[str, Any], *more: dict[str, Any]) -> None:
    """The figures of a package, and its manifest in accord with them."""
    write_json(folder / "metrics.json", metrics)
    manifest["artifacts"] += more
    for name in ("metrics.json", *(each["path"] for each in more)):
        manifest["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
    write_json(folder / "manifest.json", manifest)


def answer(call: Call, *words: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(call("select", *words, "--json")[0])
    return document


def refused(call: Call, capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ending:
        call("select", *words)
    return int(str(ending.value.code)), capfd.readouterr().err


def test_the_best_file_of_a_folder_is_given_with_its_measured_figures(family: Path, call: Call) -> None:
    found = answer(call, family, "--max-latency", "10s", "--min-top1", "1%", "--top", 5)
    packages = {str(family / name): read_json(family / name / "metrics.json") for name in ("1", "2")}
    assert {file["package"] for file in found["best"]} == packages.keys() and found["fitting"] == 2
    for file in found["best"]:
        metrics = packages[file["package"]]
        measured = metrics["artifacts"]["model.fp32.onnx"]
        assert file["top1"] == measured["accuracy"]["top1"] and file["latency_ms"] == measured["latency"][0]["p50_ms"]
        assert (file["macs"], file["params"]) == (metrics["student"]["macs"], metrics["student"]["params"])
        assert file["bytes"] == Path(file["path"]).stat().st_size
    top1 = [file["top1"] for file in found["best"]]
    assert top1 == sorted(top1, reverse=True) and found["path"] == found["best"][0]["path"]
    assert found["limits"] == {"max_latency_ms": 10_000.0, "min_top1": 1.0, "batch": 1, "percentile": "p50"}
    assert found["left_out"] == [{"reason": "no top-1 and no latency: built, not run: no GPU", "count": 1}]


def test_it_tells_people_what_was_left_out_and_how_to_use_the_file(family: Path, call: Call) -> None:
    out, err = call("select", family, "--max-latency", "10s", "--objective", "params")
    lines = out.splitlines()
    assert lines[2].startswith(str(family / "1" / "model.fp32.onnx"))
    assert lines[3:] == ["2 of 3 fit", "1 left out, no latency: built, not run: no GPU"]
    assert err == f"next: kdzoo predict {family / '1'} IMAGE\n"


def test_a_package_may_be_named_itself_and_counts_once(family: Path, call: Call) -> None:
    assert answer(call, family / "1", family, family / "1", "--top", 9)["fitting"] == 3
    assert answer(call, family / "1")["path"] == str(family / "1" / "model.fp32.onnx")


def test_batch_and_percentile_choose_the_latency(family: Path, call: Call) -> None:
    measured = read_json(family / "1" / "metrics.json")["artifacts"]["model.fp32.onnx"]["latency"]
    (largest,) = [each for each in measured if each["batch"] == 64]
    for percentile in ("p50", "p90", "p99"):
        found = answer(call, family / "1", "--batch", 64, "--percentile", percentile, "--max-latency", "99s")
        assert found["best"][0]["latency_ms"] == largest[f"{percentile}_ms"]
    with pytest.raises(UnknownName, match="unknown percentile 'p95'"):
        kdzoo.select(str(family), percentile="p95")


def test_a_batch_without_measurement_is_left_out_and_one_that_no_file_takes_is_told(
    family: Path, call: Call, capfd: pytest.CaptureFixture[str]
) -> None:
    code, said = refused(call, capfd, family / "1", "--batch", 5, "--max-latency", "1s")
    assert code == 7 and "none of 1 can be held against --max-latency 1s; 1 left out, no latency: " in said
    assert "measured at a batch of 1, 8, 64, not of 5" in said
    manifest, metrics = (read_json(family / "1" / name) for name in ("manifest.json", "metrics.json"))
    del metrics["artifacts"]["model.fp32.onnx"]["latency"]  # as of a graph that an engine is built from
    rewrite(family / "1", manifest, metrics)
    assert "no latency: made for TensorRT, not timed here" in refused(call, capfd, family / "1", "--max-latency", "1s")[1]
    code, said = refused(call, capfd, family, "--batch", 65)
    assert code == 7 and "none of 3 takes a batch of 65. Known: 1:64." in said


def test_filters_keep_what_is_asked_for(family: Path, call: Call, capfd: pytest.CaptureFixture[str]) -> None:
    assert answer(call, family, "--format", "trt-rtx", "--runtime", "tensorrt_rtx")["path"] == str(family / "2" / "model.engine")
    assert (
        answer(call, family, "--format", "trt-rtx", "--format", "onnx", "--precision", "fp32", "--dataset", "toy")["fitting"] == 3
    )
    host = read_json(family / "1" / "metrics.json")["host"]
    assert answer(call, family, "--host", host[:6].lower())["fitting"] == 2, "the engine was measured nowhere"
    for words, said in (
        ("--precision int8", "has precision int8. Known: fp32."),
        ("--device Jetson", f"has host Jetson. Known: {host}."),
    ):
        code, text = refused(call, capfd, family, *words.split())
        assert code == 7 and said in text


def test_following_the_advice_of_exit_code_7_gives_a_file(family: Path, call: Call, capfd: pytest.CaptureFixture[str]) -> None:
    limits = {"--max-params": "1K", "--max-macs": "1G"}
    code, said = refused(call, capfd, family, *(word for pair in limits.items() for word in pair))
    assert code == 7 and f"the nearest, {family / '1' / 'model.fp32.onnx'}, has parameters " in said
    option, value = said.partition("relax: ")[2].split()[:2]
    found = answer(call, family, *(word for pair in {**limits, option: value}.items() for word in pair))
    assert found["path"] == str(family / "1" / "model.fp32.onnx")


def test_figures_that_do_not_compare_are_warned_of(family: Path, call: Call) -> None:
    manifest, metrics = (read_json(family / "1" / name) for name in ("manifest.json", "metrics.json"))
    rewrite(family / "1", {**manifest, "dataset": "zebras"}, {**metrics, "host": "a toaster"})
    assert answer(call, family)["warnings"] == ["top-1 was measured on toy and zebras, which do not compare: --dataset takes one"]
    assert "a toaster" in answer(call, family, "--dataset", "zebras", "--dataset", "toy", "--objective", "latency")["warnings"][-1]
    assert answer(call, family, "--host", "toaster", "--objective", "latency", "--max-latency", "10s")["warnings"] == []


def test_files_without_accuracy_are_still_chosen_by_other_limits_and_it_is_said(family: Path, call: Call) -> None:
    manifest, metrics = (read_json(family / "1" / name) for name in ("manifest.json", "metrics.json"))
    del metrics["artifacts"]["model.fp32.onnx"]["accuracy"]
    rewrite(family / "1", manifest, metrics)
    found = answer(call, family / "1", "--max-latency", "10s")
    assert found["warnings"] == ["no top-1 is known: exported without --data, so accuracy was not measured"]
    assert found["path"] == str(family / "1" / "model.fp32.onnx")


def test_figures_that_were_changed_are_not_trusted(family: Path, call: Call, capfd: pytest.CaptureFixture[str]) -> None:
    path = family / "1" / "metrics.json"
    path.write_text(path.read_text().replace('"top1"', '"top2"', 1))
    assert refused(call, capfd, family)[0] == 6
    shutil.rmtree(family / "1")
    (family / "2" / "model.fp32.onnx").unlink()
    code, said = refused(call, capfd, family)
    assert code == 6 and "model.fp32.onnx is missing" in said


@pytest.mark.parametrize("words", ["nowhere", ".", ". --max-size much", "--max-latency 2"])
def test_what_is_no_package_or_no_quantity_is_a_usage_error(words: str, call: Call, capfd: pytest.CaptureFixture[str]) -> None:
    code, said = refused(call, capfd, *words.split())
    assert code == 2 and "Next: " in said


# --- the catalog --------------------------------------------------------------------------------------------------------


def test_without_a_source_the_targets_of_bundled_entries_are_chosen_from(call: Call) -> None:
    fitting = {
        f"{entry.name} --branch {target}": m["top1"]
        for entry in entries()
        for target, m in entry.measured.items()
        if m["params"] <= 1.1e6 and target not in ("target", entry.same.get("fused"))
    }
    best = max(fitting, key=lambda name: fitting[name])
    found = answer(call, "--max-params", "1.1M", "--top", 19)
    assert found["path"] == best and found["fitting"] == len(fitting)
    assert call("select", "--max-params", "1.1M")[1].endswith(f"next: kdzoo export {best}\n")


def test_bundled_entries_have_no_latency_and_say_so(call: Call, capfd: pytest.CaptureFixture[str]) -> None:
    code, said = refused(call, capfd, "--max-latency", "2ms", "--max-macs", "100M")
    assert code == 7 and " left out, no latency: a bundled entry is no file yet" in said
    assert (
        f"kdzoo export {DEFAULT_ENTRY} --branch all-targets -o FOLDER, then kdzoo select FOLDER --max-latency 2ms --max-macs 100M"
        in said
    )
    assert refused(call, capfd, "--format", "onnx")[0] == 7


@pytest.mark.parametrize("sources", [(), ("family",)])
def test_it_is_quick_and_does_without_heavy_libraries(sources: tuple[str, ...], family: Path) -> None:
    """Processor time of the whole command (0.13 s measured)."""
    words = ["select", "-q", *sources]
    code = f"import sys, time; from kdzoo.cli import main; main({words}); print(time.process_time(), file=sys.stderr); " \
           "assert not {'torch', 'numpy', 'onnx', 'onnxruntime', 'huggingface_hub'} & sys.modules.keys()"  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=family.parent, capture_output=True, text=True, check=True)
    assert float(done.stderr) < 0.5


def test_a_refusal_with_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["select", "--max-params", "1", "--json"])
    document = json.loads(capsys.readouterr().out)["error"]
    assert (document["type"], document["exit_code"]) == ("NothingFits", 7) and document["hint"].startswith("relax: --max-params ")
