"""A registry in a folder, for sites without a network: the same commands, the same checks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import kdzoo
from kdzoo.cli import main
from kdzoo.errors import HubError, IntegrityError, UsageError
from kdzoo.export.package import PULLED, Package
from kdzoo.export.publish import push
from kdzoo.export.pull import pull
from kdzoo.tests.small_packages import LAYOUT, files_of
from kdzoo.zoo.files import read_json, sha256, write_json
from kdzoo.zoo.reference import Reference

Call = Callable[..., tuple[str, str]]


@pytest.fixture
def place(tmp_path: Path) -> str:
    return f"file://{tmp_path}/srv/org/name"


def test_what_is_pushed_is_pulled_to_the_byte_and_verifies(place: str, package_copy: Package, call: Call, tmp_path: Path) -> None:
    folder = package_copy.folder
    pushed = json.loads(call("push", folder, "--repo-id", place, "--json")[0])
    assert pushed["commit"] == sha256(folder / "manifest.json") and pushed["tag"].endswith(pushed["commit"][:12])
    for revision in ("", f"@{pushed['tag']}", f"@{pushed['commit']}", f"@{pushed['commit'][:8]}"):
        pulled = json.loads(call("pull", place + revision, "--format", "onnx", "-o", "here", "--force", "--json")[0])
        assert pulled["commit"] == pushed["commit"]
    assert files_of(tmp_path / "here") == LAYOUT - {"model.safetensors", "config.json"} | {PULLED}
    assert "files are here" in call("verify", "here")[0] and "as the manifest describes" in call("verify", place)[0]
    assert call("card", str(tmp_path / "srv/org/name"))[0] == call("card", folder)[0], "the folder itself is a source, too"
    loaded = kdzoo.load(f"{place}@{pushed['tag']}")
    assert isinstance(loaded, Package) and loaded.document == package_copy.document


def test_revisions_stay_and_the_latest_is_the_last_push(place: str, package_copy: Package, call: Call) -> None:
    first = push(package_copy.folder, place)
    assert not push(package_copy.folder, place).changed
    write_json(package_copy.folder / "manifest.json", {**package_copy.document, "remark": "another"})
    second = push(package_copy.folder, place)
    branch = push(package_copy.folder, place, revision="stable")
    assert len({first.commit, second.commit}) == 2 and branch.commit == second.commit
    assert pull(Reference.parse(place)).commit == second.commit == pull(Reference.parse(f"{place}@stable")).commit
    assert pull(Reference.parse(f"{place}@{first.tag}")).commit == first.commit
    assert call("pull", place)[0].splitlines()[0] == second.url.removeprefix("file://")


def test_a_push_that_fails_leaves_no_revision(
    place: str, package_copy: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = push(package_copy.folder, place)
    write_json(package_copy.folder / "manifest.json", {**package_copy.document, "remark": "another"})
    copied, copyfile = list[object](), shutil.copyfile

    def full(source: Path, target: Path) -> None:
        copied.append(source)
        if len(copied) == 5:
            raise OSError(28, "No space left on device")
        copyfile(source, target)

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(kdzoo.errors.EnvironmentProblem, match="disk is full"):
        push(package_copy.folder, place)
    root = tmp_path / "srv/org/name"
    assert [p.name for p in (root / "revisions").iterdir()] == [first.commit]
    assert pull(Reference.parse(place)).commit == first.commit


@pytest.mark.parametrize("name", ["model.fp32.onnx", "labels.txt", "manifest.json"])
def test_a_flipped_byte_is_found(name: str, place: str, package_copy: Package, tmp_path: Path) -> None:
    pushed = push(package_copy.folder, place)
    path = tmp_path / "srv/org/name/revisions" / pushed.commit / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(SystemExit) as ending:
        main(["pull", place, "-o", str(tmp_path / "here")])
    assert ending.value.code == 6 and not (tmp_path / "here").exists()
    with pytest.raises(IntegrityError, match=name.replace(".", r"\.")):
        pull(Reference.parse(place))


def test_a_folder_of_packages_is_a_repository_of_their_targets(
    place: str, package_of: Callable[[str], Package], tmp_path: Path
) -> None:
    for target in ("1", "2"):
        shutil.copytree(package_of(target).folder, tmp_path / "both" / target)
    push(tmp_path / "both", place)
    for target in ("1", "2"):
        assert kdzoo.load(place, branch=int(target)).document == package_of(target).document  # type: ignore[union-attr]
        assert kdzoo.load(f"{place}#{target}").document == package_of(target).document  # type: ignore[union-attr]
    manifest = read_json(next((tmp_path / "srv/org/name/revisions").iterdir()) / "manifest.json")
    assert manifest["targets"] == ["1", "2"] and len(manifest["files"]) == 2 * len(LAYOUT) + 1


def test_what_is_not_there_is_said(place: str, package_copy: Package) -> None:
    with pytest.raises(HubError, match="there is no repository"):
        pull(Reference.parse(place))
    tag = push(package_copy.folder, place).tag
    for revision in ("v9", "0123456", "refs/../latest"):
        with pytest.raises((HubError, UsageError), match=r"has no revision|cannot be the name"):
            pull(Reference.parse(f"{place}@{revision}"))
    with pytest.raises(HubError) as error:
        pull(Reference.parse(f"{place}@v9"))
    assert error.value.known == (tag,) and error.value.exit_code == 5


@pytest.mark.parametrize(
    ("repo_id", "options"),
    [
        ("file://server/org/name", {}),
        ("name", {}),
        ("org/name/more", {}),
        ("org/name@v1", {}),
        ("org/../name", {}),
        ("file:///srv/name", {"private": True}),
        ("file:///srv/name", {"create_pr": True}),
    ],
)
def test_a_place_that_is_none_is_refused_before_anything_is_written(
    repo_id: str, options: dict[str, bool], package_copy: Package
) -> None:
    with pytest.raises(UsageError):
        push(package_copy.folder, repo_id, **options)  # type: ignore[arg-type]
