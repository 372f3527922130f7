"""What goes wrong between here and a Hub: one sentence, exit 5 or 6, and nothing in the cache that cannot be trusted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from kdzoo.cli import main
from kdzoo.errors import HubError, IntegrityError
from kdzoo.export.package import Package
from kdzoo.export.pull import pull
from kdzoo.tests.hub_pages import READER, WRITER
from kdzoo.tests.hub_server import Hub, own_warnings, serve
from kdzoo.tests.small_packages import LAYOUT
from kdzoo.zoo import hub as zoo_hub
from kdzoo.zoo.files import read_json, to_json
from kdzoo.zoo.reference import Reference

pytestmark = own_warnings
NAME = "org/name"
NAMED = Reference.parse(NAME)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serve(tmp_path / "home") as server:
        yield server


@pytest.fixture
def package(package_of: Callable[[str], Package]) -> Package:
    return package_of("1")


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`fails(code, words...)`: the sentence that the command ends with."""

    def call(code: int, *words: object) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ending:
            main([str(word) for word in words])
        err = capfd.readouterr().err
        assert ending.value.code == code and "Traceback" not in err, err
        return err.splitlines()[-1]

    return call


def cache_files() -> list[Path]:
    return [path for path in Path(constants.HF_HUB_CACHE).rglob("*") if path.is_file() and ".locks" not in path.parts]


@pytest.mark.parametrize(
    ("status", "headers", "says"),
    [
        (401, {}, "does not know the token that was sent for org/name. Next: hf auth login, or HF_TOKEN"),
        (401, {"X_Error_Code": "RepoNotFound"}, "does not exist, or is private and the token does not open it"),
        (403, {"X_Error_Code": "GatedRepo"}, "open only to those whom its owners let in. Next: ask on its page"),
        (403, {}, "the token may not read org/name"),
        (404, {"X_Error_Code": "RepoNotFound"}, "org/name does not exist"),
        (404, {"X_Error_Code": "RevisionNotFound"}, "org/name has no revision 'main'"),
        (404, {"X_Error_Code": "EntryNotFound"}, "org/name has no file manifest.json at main"),
        (418, {}, "refuses to read org/name: 418"),
        (429, {}, "too many requests from here. Next: run it again in a few minutes"),
        (500, {}, "out of order: it answers 500"),
        (503, {}, "out of order: it answers 503"),
    ],
)
def test_every_refusal_has_its_sentence(
    status: int, headers: dict[str, str], says: str, hub: Hub, package: Package, fails: Callable[..., str]
) -> None:
    hub.add_folder(NAME, package.folder)
    hub.fail("resolve", status, **headers)
    assert says in fails(5, "pull", NAME)


@pytest.mark.parametrize(
    ("reference", "token", "says"),
    [
        ("org/nothing", WRITER, "org/nothing does not exist"),
        ("org/private", None, "org/private does not exist, or is private"),
        ("org/name", "hf_wrong", "does not know the token"),
        ("org/name@v9", WRITER, "has no revision 'v9'"),
        ("org/empty", WRITER, "has no file manifest.json"),
    ],
)
def test_what_is_not_there_or_not_for_you_is_said(
    reference: str, token: str | None, says: str, hub: Hub, package: Package, fails: Callable[..., str], monkeypatch: Any
) -> None:
    hub.add_folder(NAME, package.folder)
    hub.add("org/private", {"manifest.json": b"{}"}, private=True)
    hub.add("org/empty", {"README.md": b"hello"})
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    for verb in ("pull", "verify"):
        assert says in fails(5, verb, reference)


@pytest.mark.parametrize(
    ("pattern", "status", "says"),
    [
        ("POST .*/create", 401, "does not know the token"),
        ("POST .*/preupload", 403, "the token may not write to org/name"),
        ("PUT /lfs", 503, "it answers 503"),
        ("POST .*/commit", 412, "was changed by someone else meanwhile"),
        ("POST .*/tag", 500, "it answers 500"),
    ],
)
def test_every_step_of_a_push_can_be_refused(
    pattern: str, status: int, says: str, hub: Hub, package: Package, fails: Callable[..., str]
) -> None:
    hub.fail(pattern, status)
    assert says in fails(5, "push", package.folder, "--repo-id", NAME)


def test_a_token_that_only_reads_does_not_push(hub: Hub, package: Package, fails: Callable[..., str]) -> None:
    hub.add(NAME, {".gitattributes": b""})
    said = fails(5, "push", package.folder, "--repo-id", NAME, "--token", READER)
    assert "may not write to org/name" in said and READER not in said


def test_a_hub_that_is_busy_for_a_moment_is_asked_again(hub: Hub, package: Package) -> None:
    hub.add_folder(NAME, package.folder)
    hub.fail("HEAD .*manifest", 503, times=2)
    hub.fail("GET .*labels", 429, times=2)
    assert len(pull(NAMED).files) == len(LAYOUT) - 1


@pytest.mark.parametrize("name", ["model.fp32.onnx", "labels.txt", "manifest.json"])
def test_a_flipped_byte_is_found_and_nothing_of_it_is_kept(
    name: str, hub: Hub, package: Package, fails: Callable[..., str], tmp_path: Path
) -> None:
    hub.add_folder(NAME, package.folder)
    hub.flip(name)
    assert f"{name} of org/name is not the file that was announced" in fails(6, "pull", NAME, "-o", tmp_path / "here")
    content = bytearray((package.folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    kept = cache_files()
    assert not any(path.name == name or path.read_bytes() == bytes(content) for path in kept), f"kept: {kept}"
    assert not (tmp_path / "here").exists()
    hub.flips.clear()
    assert len(pull(NAMED).files) == len(LAYOUT) - 1


def test_a_file_that_was_changed_after_it_was_published_is_not_kept(hub: Hub, package: Package) -> None:
    hub.add_folder(NAME, package.folder)
    repository = hub.repositories[NAME]
    changed = (package.folder / "labels.txt").read_bytes().replace(b"class 1", b"class I")
    hub.add(NAME, {**repository.commits[repository.branches["main"]], "labels.txt": changed})
    with pytest.raises(IntegrityError, match=r"labels\.txt of org/name"):
        pull(NAMED)
    assert not any(path.name == "labels.txt" or path.read_bytes() == changed for path in cache_files())


@pytest.mark.parametrize("name", ["labels.txt", "manifest.json"])
def test_a_blob_that_rots_in_the_cache_is_found_and_fetched_again(name: str, hub: Hub, package: Package) -> None:
    hub.add_folder(NAME, package.folder)
    blob = (pull(NAMED).source.folder / name).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    with pytest.raises(IntegrityError, match=name.replace(".", r"\.")):
        pull(NAMED)
    assert not blob.exists() and len(pull(NAMED).files) == len(LAYOUT) - 1


def test_a_file_of_another_size_is_refused_before_it_comes(hub: Hub, package: Package) -> None:
    commit = hub.add_folder(NAME, package.folder)
    files = hub.repositories[NAME].commits[commit]
    for name in ("labels.txt", "model.fp32.onnx"):
        hub.log.clear()
        hub.add(NAME, {**files, name: files[name] + b"x" * 1000})
        with pytest.raises(IntegrityError, match=f"{name} of org/name"):
            pull(NAMED, formats=("onnx",))
        assert hub.asked(f"HEAD .*{name}") and not hub.asked(f"GET .*{name}")


@pytest.mark.parametrize(("name", "told"), [("manifest.json", True), ("model.sig", True), ("manifest.json", False)])
def test_a_file_whose_size_no_manifest_tells_has_a_limit(
    name: str, told: bool, hub: Hub, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.relative_to(package.folder).as_posix(): path.read_bytes() for path in package.folder.rglob("*") if path.is_file()}
    most = len(files["manifest.json"]) + (1 if name == "model.sig" else -1)
    hub.add(NAME, {**files, "model.sig": b"x" * (most + 1)})
    monkeypatch.setattr(zoo_hub, "MOST_UNNAMED", most)
    if not told:  # the server keeps its size to itself
        described = zoo_hub.described
        monkeypatch.setattr(zoo_hub, "described", lambda url, token: (described(url, token)[0], None))
    with pytest.raises(IntegrityError, match=rf"{name} of org/name has [\d,]+ bytes or more, and {most:,} at most"):
        pull(NAMED)
    assert bool(hub.asked(f"GET .*{name}")) is not told and not any(path.name.startswith(name) for path in cache_files())
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))


BAD_NAMES = [
    "../../x", "/etc/passwd", "golden/../../x", "a\\..\\x", "C:x", "~/x", "a//x", "./x", "", ".git/config", "x\n",
    "weights.pkl", "weights.PT", "weights.pth", "pytorch_model.bin", "last.ckpt",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("where", ["files", "artifacts"])
def test_a_name_that_cannot_be_trusted_is_refused_before_anything_is_fetched(
    name: str, where: str, hub: Hub, package: Package, fails: Callable[..., str]
) -> None:
    document = read_json(package.folder / "manifest.json")
    if where == "files":
        document["files"][name] = document["files"]["labels.txt"]
    else:
        document["artifacts"][0]["path"] = name
    hub.add(NAME, {"manifest.json": to_json(document), "labels.txt": b"x"})
    assert "a manifest names the file" in fails(6, "pull", NAME)
    assert {r.path.rpartition("/")[2] for r in hub.asked("resolve")} == {"manifest.json"}
    with pytest.raises(IntegrityError, match="names the file"):
        pull(NAMED)


@pytest.mark.parametrize(
    "described", [None, 3, {"sha256": "x", "bytes": 1}, {"sha256": "0" * 64, "bytes": "1"}, {"sha256": "0" * 64}]
)
def test_a_manifest_without_checksums_is_refused(described: Any, hub: Hub, package: Package) -> None:
    document = read_json(package.folder / "manifest.json")
    document["files"]["labels.txt"] = described
    hub.add(NAME, {"manifest.json": to_json(document)})
    with pytest.raises(IntegrityError, match=r"does not say sha256 and bytes of 'labels\.txt'"):
        pull(NAMED)


@pytest.mark.parametrize("targets", [["../.."], ["1"], [], "1", [1], None])
def test_a_collection_that_does_not_hold_what_it_says_is_refused(targets: Any, hub: Hub) -> None:
    document = {"schema_version": 1, "kind": "collection", "entry": "x", "targets": targets, "files": {}}
    if targets == ["../.."]:
        document["files"] = {"../../manifest.json": {"sha256": "0" * 64, "bytes": 1}}
    hub.add(NAME, {"manifest.json": to_json(document)})
    with pytest.raises(IntegrityError):
        pull(NAMED)
    assert {r.path.partition("/resolve/")[2].partition("/")[2] for r in hub.asked("resolve")} == {"manifest.json"}


def test_a_manifest_of_something_else_is_refused(hub: Hub) -> None:
    hub.add(NAME, {"manifest.json": b'{"schema_version": 1, "files": {}}'})
    with pytest.raises(IntegrityError, match="no manifest of kdzoo"):
        pull(NAMED)


def test_offline_takes_what_the_cache_has_and_asks_nobody(hub: Hub, package: Package, fails: Callable[..., str]) -> None:
    hub.add_folder(NAME, package.folder)
    assert "is not in the cache" in fails(5, "pull", NAME, "--offline")
    commit = pull(NAMED, formats=("onnx",)).commit
    hub.log.clear()
    for reference in (NAMED, NAMED.at(commit)):
        assert pull(reference, formats=("onnx",), offline=True).commit == commit
    assert "config.json of org/name is not in the cache" in fails(5, "pull", NAME, "--offline")
    assert hub.log == []


def test_without_a_network_the_cache_is_taken_and_that_is_said(hub: Hub, package: Package, monkeypatch: Any) -> None:
    hub.add_folder(NAME, package.folder)
    commit, said = pull(NAMED).commit, list[str]()
    nowhere = "http://127.0.0.1:1"
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere + "/{repo_id}/resolve/{revision}/{filename}")
    assert pull(NAMED, say=said.append).commit == commit
    assert pull(NAMED.at(commit), say=said.append).commit == commit
    assert sum("taking what the cache knows as org/name" in line for line in said) == 1, "a commit that is here needs no network"
    with pytest.raises(HubError, match="connection to the Hub failed"):
        pull(Reference.parse("org/other"))


def test_the_variables_of_huggingface_hub_mean_what_they_mean_there(hub: Hub, package: Package, tmp_path: Path) -> None:
    hub.add_folder(NAME, package.folder, private=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "NO_PROXY": "127.0.0.1,localhost"}
    environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": READER, "HF_HUB_CACHE": str(tmp_path / "elsewhere")}
    command = [sys.executable, "-m", "kdzoo", "pull", NAME, "--format", "onnx", "--json"]
    first = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert {r.token for r in hub.asked("/resolve/")} == {READER} and "%|" not in first.stderr, "a progress bar without a terminal"
    folder = Path(json.loads(first.stdout)["folder"])
    assert folder.is_relative_to(tmp_path / "elsewhere")
    hub.log.clear()
    second = subprocess.run(
        command, env={**environment, "HF_HUB_OFFLINE": "1"}, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert second.returncode == 0 and json.loads(second.stdout) == json.loads(first.stdout) and hub.log == []
