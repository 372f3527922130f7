"""Files and folders are whole or absent, whatever ends the process that writes them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kdzoo.errors import OutputError
from kdzoo.tests.small_packages import names
from kdzoo.zoo.files import new_folder, read_json, standing, write_bytes, write_json


def test_a_block_that_raises_keeps_the_previous_folder(tmp_path: Path) -> None:
    write_bytes(tmp_path / "f" / "x", b"old")
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), new_folder(tmp_path / "f") as part:
            (part / "x").write_bytes(b"half")
            raise error
    assert (tmp_path / "f" / "x").read_bytes() == b"old"
    assert names(tmp_path) == ["f"] and names(tmp_path / "f") == ["x"]


def test_a_new_folder_replaces_the_previous_one_with_everything_in_it(tmp_path: Path) -> None:
    write_bytes(tmp_path / "f" / "old", b"old")
    with new_folder(tmp_path / "f") as part:
        write_bytes(part / "deep" / "new", b"new")
        assert names(tmp_path / "f") == ["old"], "the previous folder must stand until the new one is whole"
    assert names(tmp_path) == ["f"] and (tmp_path / "f" / "deep" / "new").read_bytes() == b"new"
    assert names(tmp_path / "f") == ["deep"]


# Ends the process, as kill -9 or a power cut would, at the n-th rename or after the last.
KILLED = """
import os, sys, pathlib
from kdzoo.zoo import files
count, rename = int(sys.argv[2]), pathlib.Path.rename
def dying(self, target):
    global count
    if count == 0:
        os._exit(9)
    count -= 1
    return rename(self, target)
pathlib.Path.rename = dying
files.shutil.rmtree = lambda path, **k: os._exit(9) if path.exists() else None
with files.new_folder(pathlib.Path(sys.argv[1])) as part:
    (part / "x").write_bytes(b"new")
"""


@pytest.mark.parametrize(("renames", "survives"), [(0, b"old"), (1, b"old"), (2, b"new")])
def test_a_process_killed_around_the_renames_leaves_a_whole_folder(renames: int, survives: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "f"
    write_bytes(folder / "x", b"old")
    killed = subprocess.run([sys.executable, "-c", KILLED, folder, str(renames)], capture_output=True, check=False)
    assert killed.returncode == 9, killed.stderr.decode()
    assert folder.exists() == (renames != 1), "the process did not die where the test wants it"
    assert (standing(folder) / "x").read_bytes() == survives
    with new_folder(folder) as part:
        (part / "x").write_bytes(b"next")
    assert (folder / "x").read_bytes() == b"next", "a leftover stands in the way of the next folder"
    assert not (tmp_path / ".f.old").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be written"):
        write_bytes(tmp_path / "file" / "x", b"x")
    with pytest.raises(OutputError, match="cannot be written"), new_folder(tmp_path / "file" / "x"):
        pass


def test_json_is_stable_and_refuses_what_is_not_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": 1, "a": ["é"]})
    assert (tmp_path / "a").read_text(encoding="utf-8") == '{\n  "a": [\n    "é"\n  ],\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a", {"top1": float("nan")})
    assert read_json(tmp_path / "a") == {"b": 1, "a": ["é"]} and names(tmp_path) == ["a"]
