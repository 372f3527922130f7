"""The root of the repository is the package: what is listed is what is there, and the wheel holds that and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
NOT_SHIPPED = {"tests", "benchmarks", "tools", "docs", "model_cards"}


def tracked_files() -> list[str]:
    """The files of the project: what git tracks or would track."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files belong to the project is not known")
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in listed if (ROOT / name).exists()]


def test_the_list_of_packages_is_the_folders_that_hold_modules() -> None:
    modules = [Path(name) for name in tracked_files() if name.endswith(".py")]
    folders = {m.parent.as_posix() for m in modules if m.parts[0] not in NOT_SHIPPED}
    expected = {"kdzoo" if folder == "." else f"kdzoo.{folder.replace('/', '.')}" for folder in folders}
    assert set(SETTINGS["packages"]) == expected, "pyproject.toml, [tool.setuptools] packages, does not list the folders"


def test_the_root_holds_only_modules_of_the_package() -> None:
    assert {p.name for p in ROOT.glob("*.py")} == {"__init__.py", "__main__.py", "errors.py"}


def test_every_package_has_an_init_that_only_explains() -> None:
    for package in ("zoo", "export", "train", "zoo/backbones", "zoo/methods", "export/formats"):
        text = (ROOT / package / "__init__.py").read_text().strip()
        assert text.startswith('"""') and text.count('"""') == 2 and text.endswith('"""'), f"{package}/__init__.py holds code"


def test_the_wheel_holds_exactly_the_package(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", reason="building a wheel needs setuptools: pip install -e '.[dev]'")
    source = tmp_path / "a directory of any name"
    names = tracked_files()
    for name in names:
        if not (ROOT / name).is_symlink():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    command = [sys.executable, "-m", "pip", "wheel", *offline, "-w", str(tmp_path), "."]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}

    shipped = [n for n in names if n.endswith(".py") and n.split("/")[0] not in NOT_SHIPPED]
    shipped += [n for n in names if n.startswith(("model_cards/", "train/recipes/")) and n.count("/") == 2]
    shipped += [n for n in names if n.startswith("serve/page/")]
    shipped += ["py.typed"]
    assert inside == {f"kdzoo/{name}" for name in shipped}
