"""What a user can get wrong ends in one line on stderr, the right exit code, and nothing on disk."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest

from kdzoo.cli import main
from kdzoo.cli.messages import report
from kdzoo.errors import GateFailed
from kdzoo.export import engine_sidecar
from kdzoo.export.engine_sidecar import installed_version
from kdzoo.zoo.catalog import DEFAULT_ENTRY, get_entry
from kdzoo.zoo.files import read_json, write_json

ENTRY = DEFAULT_ENTRY


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.delenv("KDZOO_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(here: Path) -> Path:
    """A copy of the bundled entry, as a run has it; `run` in the working folder."""
    folder = get_entry(ENTRY).folder
    assert folder is not None, "the default entry is not bundled"
    shutil.copytree(folder, here / "run" / "checkpoint", ignore=shutil.ignore_patterns("*.md", "*.png", "*.jsonl"))
    return here / "run"


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Any:
    """`fails(code, arguments...)`: the sentence that the command ends with."""

    def call(code: int, *arguments: object) -> str:
        line = ["kdzoo", *map(str, arguments)]
        capsys.readouterr()
        with pytest.raises(SystemExit) as ending:
            main(line[1:])
        out, err = capsys.readouterr()
        assert ending.value.code == code, f"{' '.join(line)} exits with {ending.value.code}, not {code}: {err}"
        assert out == "", "an error said something on stdout"
        said = [text for text in err.splitlines() if text.startswith("kdzoo: ")]
        assert len(said) == 1 and err.endswith(said[0] + "\n"), f"not one last line that says what happened: {err}"
        assert "Traceback" not in err
        return said[0]

    return call


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ("exprt", 2, "unknown command 'exprt'; did you mean 'export'?"),
        ("--bogus", 2, "No such option"),
        ("export --formt onnx", 2, "--format"),
        (f"export {ENTRY.replace('resnet', 'rasnet')}", 2, f"did you mean '{ENTRY}'?"),
        ("export runs/nothing", 2, "unknown source 'runs/nothing'"),
        ("export dbfskd-resnet18-cifar100", 2, "kdzoo train dbfskd-resnet18-cifar100"),
        (f"export {ENTRY} --branch nine", 2, "unknown target 'nine'"),
        (f"export {ENTRY} --branch fusd", 2, "did you mean 'fused'?"),
        (f"export {ENTRY} --branch 9", 2, "unknown target '9'. Known: 1, 2, 3, 4"),
        (f"export {ENTRY} --branch 1+9", 2, "unknown target '1+9'"),
        (f"export {ENTRY} --branch 1+1", 2, "twice"),
        (f"export {ENTRY} --format onxn", 2, "did you mean 'onnx'?"),
        (f"export {ENTRY} --precision fp61", 2, "did you mean 'fp16'?"),
        (f"export {ENTRY} --input unt8", 2, "did you mean 'uint8'?"),
        (f"export {ENTRY} --batch 8:4:1", 2, "MIN:OPT:MAX"),
        (f"export {ENTRY} --batch 0", 2, "MIN:OPT:MAX"),
        (f"export {ENTRY} --batch many", 2, "MIN:OPT:MAX"),
        (f"export {ENTRY} --opset 9", 2, "cannot write ONNX opset 9"),
        (f"export {ENTRY} --format trt-rtx -c 9.9", 2, "unknown compute capability '9.9'"),
        (f"export {ENTRY} --min-agreement 2", 2, "--min-agreement"),
        (f"export {ENTRY} --data nowhere", 2, "there is no data at nowhere"),
        (f"eval {ENTRY}", 2, "not at hand"),
        (f"eval {ENTRY} --data nowhere", 2, "there is no data at nowhere"),
        (f"predict {ENTRY} nothing.png", 2, "nothing.png does not exist"),
        (f"predict {ENTRY}", 2, "IMAGES"),
        (f"verify {ENTRY}", 2, f"kdzoo export {ENTRY}"),
        (f"bench {ENTRY}", 2, "is a checkpoint, not a package"),
        ("verify", 2, "Missing argument 'PACKAGE'"),
        ("train ahfb-resnet32-cifar100", 2, "did you mean 'ahbf-resnet32-cifar100'?"),
    ],
)
def test_a_wrong_word_is_named_and_leaves_nothing(arguments: str, code: int, says: str, here: Path, fails: Any) -> None:
    assert says in fails(code, *arguments.split())
    assert list(here.iterdir()) == []


def test_a_folder_that_is_something_else_is_named(here: Path, fails: Any) -> None:
    (here / "empty").mkdir()
    assert "holds no checkpoint" in fails(2, "export", "empty")
    assert "holds no checkpoint" in fails(2, "verify", "empty")
    assert [p.name for p in here.iterdir()] == ["empty"]


def test_a_picture_that_cannot_be_decoded_is_named(here: Path, fails: Any) -> None:
    (here / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"no picture" * 9)
    assert "broken.png cannot be decoded" in fails(2, "predict", ENTRY, "broken.png")
    assert "cannot be decoded" in fails(2, "predict", ENTRY, here)


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove"])
@pytest.mark.parametrize("name", ["model.safetensors", "samples.npz"])
def test_a_damaged_checkpoint_is_not_used(harm: str, name: str, run: Path, here: Path, fails: Any) -> None:
    path = run / "checkpoint" / name
    content = bytearray(path.read_bytes())
    if harm == "remove":
        path.unlink()
    elif harm == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    assert name in fails(6, "export", run)
    assert sorted(p.name for p in here.iterdir()) == ["run"]


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (b"{ no json", 6, "not valid JSON"),
        (b"\xff\xfe\x00", 6, "not valid JSON"),
        (b"", 6, "not valid JSON"),
        (b"[]", 6, "no schema version"),
        (b"{}", 6, "no schema version"),
        (b'"text"', 6, "no schema version"),
        (b'{"schema_version": 1, "kind": "checkpoint"}', 6, "lacks"),
        (b'{"schema_version": 1, "kind": "package"}', 6, "not the manifest of a package"),
        (b'{"schema_version": 999, "kind": "checkpoint"}', 4, "pip install --upgrade kdzoo"),
        (b'{"schema_version": 999, "kind": "package"}', 4, "pip install --upgrade kdzoo"),
    ],
)
def test_a_manifest_that_is_garbage_or_newer_is_said_to_be_so(content: bytes, code: int, says: str, here: Path, fails: Any) -> None:
    (here / "folder").mkdir()
    (here / "folder" / "manifest.json").write_bytes(content)
    for verb in ("info", "export", "verify", "card"):
        assert says in fails(code, verb, "folder"), f"kdzoo {verb} says something else"


def test_a_manifest_of_an_unknown_method_is_told_with_the_nearest(run: Path, fails: Any) -> None:
    path = run / "checkpoint" / "manifest.json"
    write_json(path, {**read_json(path), "method": "ahfb"})
    assert "unknown method 'ahfb'; did you mean 'ahbf'?" in fails(2, "export", run)


def test_a_checkpoint_without_measured_numbers_has_no_card(run: Path, fails: Any) -> None:
    path = run / "checkpoint" / "manifest.json"
    write_json(path, {**read_json(path), "metrics": {}})
    assert "nothing is measured" in fails(2, "card", run)


def test_a_cifar_file_that_is_not_the_official_one_is_refused(here: Path, fails: Any) -> None:
    (here / "data" / "cifar-100-python").mkdir(parents=True)
    for name in ("test", "train", "meta"):
        (here / "data" / "cifar-100-python" / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    assert "md5" in fails(6, "export", ENTRY, "--data", "data")
    assert "md5" in fails(6, "eval", ENTRY)
    assert [p.name for p in here.iterdir()] == ["data"], "something was written, or the pickle was run"


@pytest.mark.parametrize("output", ["full", "file", "file/inside", "."])
def test_an_output_that_cannot_be_used_is_left_as_it_is(output: str, here: Path, fails: Any) -> None:
    (here / "full").mkdir()
    (here / "full" / "precious").write_text("mine")
    (here / "file").write_text("mine")
    before = {p.relative_to(here): p.read_bytes() for p in here.rglob("*") if p.is_file()}
    says = fails(2, "export", ENTRY, "-o", output)
    assert "--output" in says and "--output" in fails(2, "export", ENTRY, "-o", output, *(["--force"] if output != "full" else []))
    assert ("--force" in says) == (output == "full")
    assert {p.relative_to(here): p.read_bytes() for p in here.rglob("*") if p.is_file()} == before


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="takes /proc as a place that nobody can write to")
def test_a_place_that_cannot_be_written_is_named(here: Path, fails: Any) -> None:
    assert "/proc/nowhere" in fails(2, "export", ENTRY, "-o", "/proc/nowhere")


def test_a_full_disk_is_an_environment_problem(here: Path, fails: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", no_space)
    assert "the disk is full" in fails(4, "export", ENTRY, "-o", "deep/package")
    assert list(here.iterdir()) == [], "folders that were made on the way are left behind"


def test_of_several_branches_none_is_written_where_one_is_unknown_or_its_place_is_taken(here: Path, fails: Any) -> None:
    assert "unknown target '9'" in fails(2, "export", ENTRY, "-b", "1", "-b", "9")
    assert list(here.iterdir()) == []
    taken = here / f"{ENTRY}-2"
    taken.mkdir()
    (taken / "x").touch()
    assert "is not empty" in fails(2, "export", ENTRY, "-b", "1", "-b", "2")
    assert list(here.iterdir()) == [taken]


@pytest.mark.parametrize("format", ["tensorrt", "trt-rtx", "trt"])
def test_a_missing_tensorrt_is_told_with_the_pip_line(format: str, here: Path, fails: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(runtime: str) -> None:
        return None

    for module in ("formats.tensorrt_rtx", "formats.tensorrt", "tensorrt_build"):
        monkeypatch.setattr(sys.modules.get(f"kdzoo.export.{module}") or _load(module), "installed_version", nothing)
    extra = "tensorrt" if format == "tensorrt" else "tensorrt-rtx"
    assert f"pip install {extra}" in fails(4, "export", ENTRY, "--format", format)
    assert list(here.iterdir()) == []


def _load(module: str) -> Any:
    import importlib

    return importlib.import_module(f"kdzoo.export.{module}")


@pytest.mark.skipif(installed_version("tensorrt") is None, reason="tensorrt is not installed")
def test_tensorrt_without_a_gpu_points_at_trt_rtx(here: Path, fails: Any) -> None:
    if engine_sidecar.gpu_compute_capability() is not None:
        pytest.skip("there is a GPU here")
    assert "--format trt-rtx" in fails(4, "export", ENTRY, "--format", "tensorrt")


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [("exprt --json", 2, "UnknownName"), ("export folder --json", 6, "IntegrityError"), ("ls --json more", 2, "UsageError")],
)
def test_with_json_an_error_is_one_document_on_stdout(
    arguments: str, code: int, kind: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "folder").mkdir()
    (here / "folder" / "manifest.json").write_text("[]")
    with pytest.raises(SystemExit) as ending:
        main(arguments.split())
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert (ending.value.code, error["exit_code"], error["type"]) == (code, code, kind)
    assert error["message"] in err and error["hint"] in error["message"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
        (OSError(errno.ENOSPC, "No space left on device"), 4),
        (RuntimeError("two\nlines"), 1),
        (GateFailed("onnxruntime says:\n\tmuch\n\tmore"), 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_end_has_a_code_and_one_line(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(error, as_json=False, verbose=False) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_a_traceback_is_shown_on_request_only(capsys: pytest.CaptureFixture[str]) -> None:
    report(RuntimeError("odd"), as_json=False, verbose=True)
    assert "RuntimeError: odd" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_ctrl_c_during_an_export_leaves_nothing(here: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "kdzoo", "export", ENTRY, "-o", "package"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it, and so would its children
    process = subprocess.Popen(command, cwd=here, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    deadline = time.monotonic() + 120
    while not list(here.glob(".package.*.part/model.safetensors")) and process.poll() is None:
        assert time.monotonic() < deadline, "the export did not begin"
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.endswith("kdzoo: interrupted\n") and "Traceback" not in err
    assert list(here.iterdir()) == []
