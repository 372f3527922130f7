"""The command line as a user types it: data on stdout, talk on stderr, no library that it does not need."""

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

from kdzoo import __version__
from kdzoo.cli import SECTIONS, group
from kdzoo.cli.console import table
from kdzoo.cli.options import expand
from kdzoo.errors import UnknownName
from kdzoo.tests.small_packages import bundled
from kdzoo.zoo.catalog import DEFAULT_ENTRY, published_entries
from kdzoo.zoo.files import read_json

VERBS = [verb for verbs in SECTIONS.values() for verb in verbs]
Call = Callable[..., tuple[str, str]]


def test_the_newest_run_is_preferred_and_said(call: Call, tmp_path: Path) -> None:
    for age, name in ((200, "older"), (100, "newer"), (300, "oldest")):
        folder = tmp_path / "runs" / name / "checkpoint"
        shutil.copytree(bundled().folder, folder, ignore=shutil.ignore_patterns("*.png", "model.*"))
        at = (folder / "manifest.json").stat().st_mtime - age
        os.utime(folder / "manifest.json", (at, at))
    out, err = call("info", "--json")
    assert "taking the newest run, runs/newer" in err
    assert json.loads(out)["folder"] == str(Path("runs/newer/checkpoint"))


def test_all_stands_for_every_target_beside_others_and_each_is_taken_once() -> None:
    expanded = expand(["1+2", "all-targets", "2"], lambda: ("target", "1", "2"))
    assert list(map(str, expanded)) == ["1+2", "target", "1", "2"]
    with pytest.raises(UnknownName):
        expand(["al"], lambda: ())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_in_the_words_of_the_list(verb: str, call: Call) -> None:
    out, err = call(verb, "--help")
    assert out.startswith(f"Usage: kdzoo {verb} ") and "--json" in out and err == ""
    command = group.get_command(None, verb)  # type: ignore[arg-type]
    assert command is not None and command.help is not None
    first = command.help.splitlines()[0]
    stated = next(verbs[verb] for verbs in SECTIONS.values() if verb in verbs)
    assert first == stated, f"kdzoo --help and kdzoo {verb} --help differ"


def test_without_words_it_shows_the_help(call: Call) -> None:
    assert call() == call("--help") == call("-h")
    out, err = call()
    assert err == "" and all(verb in out for verb in VERBS) and "kdzoo export --branch 3 --format trt" in out
    assert __version__ in call("--version")[0]


def test_quiet_says_nothing_but_the_result(call: Call) -> None:
    out, err = call("ls", "-q")
    assert DEFAULT_ENTRY in out and err == ""


def test_numbers_stand_right_and_words_left() -> None:
    assert table(("name", "n"), [("a", "1,000"), ("long name", "-")]).splitlines() == [
        "name           n", "---------  -----", "a          1,000", "long name      -",
    ]  # fmt: skip


def test_ls_lists_published_beside_measured(call: Call) -> None:
    listed = {entry["name"]: entry for entry in json.loads(call("ls", "--json")[0])}
    assert listed.keys() >= published_entries().keys()
    assert listed[DEFAULT_ENTRY]["bundled"] and listed[DEFAULT_ENTRY]["published"]["target"] == 74.81
    assert listed[DEFAULT_ENTRY]["measured"] == read_json(bundled().folder / "metrics.json")["targets"]


def test_help_imports_click_and_little_else() -> None:
    code = "import sys, kdzoo.cli; print(sorted({'numpy', 'onnx', 'PIL', 'rich', 'torch', 'onnxruntime'} & sys.modules.keys()))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_pipe_that_closes_early_is_no_error(tmp_path: Path) -> None:
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "kdzoo", "info", DEFAULT_ENTRY, "--json"], env=environment, cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    process.wait(timeout=120)
    assert err == ""
