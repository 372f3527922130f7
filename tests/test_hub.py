"""Push and pull over the protocol of the Hub: the same bytes, only what is needed, one commit, and a pinned one."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kdzoo
from kdzoo.errors import HubError, IntegrityError, UnknownName, UsageError
from kdzoo.export.package import PULLED, Package
from kdzoo.export.publish import push
from kdzoo.export.pull import pull
from kdzoo.export.source import resolve, resolve_checkpoint
from kdzoo.export.verify import verify_package
from kdzoo.tests.hub_pages import READER, WRITER
from kdzoo.tests.hub_server import Hub, own_warnings, serve
from kdzoo.tests.small_packages import LAYOUT, files_of
from kdzoo.zoo.checkpoint import Checkpoint
from kdzoo.zoo.files import read_json, write_json
from kdzoo.zoo.reference import Reference

pytestmark = own_warnings
NAME = "org/name"
BASE = LAYOUT - {"model.fp32.onnx", "model.safetensors", "config.json"}
Call = Callable[..., tuple[str, str]]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serve(tmp_path / "home") as server:
        yield server


@pytest.fixture
def package(package_of: Callable[[str], Package]) -> Package:
    return package_of("1")


@pytest.fixture
def collection(package_of: Callable[[str], Package], tmp_path: Path) -> Path:
    """Two packages, as `kdzoo export -b 1 -b 2 -o FOLDER` writes them."""
    for target in ("1", "2"):
        shutil.copytree(package_of(target).folder, tmp_path / "both" / package_of(target).name)
    return tmp_path / "both"


def same_bytes(folder: Path, other: Path, names: set[str]) -> bool:
    return all((folder / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_what_is_pushed_is_pulled_to_the_byte_and_verifies(hub: Hub, package: Package, call: Call, tmp_path: Path) -> None:
    pushed = json.loads(call("push", package.folder, "--repo-id", NAME, "--json")[0])
    assert pushed["url"] == f"{hub.url}/{NAME}/commit/{pushed['commit']}" and len(hub.asked("POST .*/commit/")) == 1
    repository = hub.repositories[NAME]
    assert repository.tags == {pushed["tag"]: pushed["commit"]} and repository.branches["main"] == pushed["commit"]
    assert set(repository.commits[pushed["commit"]]) == LAYOUT | {".gitattributes"}
    out, err = call("pull", f"{NAME}@{pushed['tag']}", "-o", "here", "--json")
    pulled = json.loads(out)
    assert pulled["commit"] == pushed["commit"] and "next: " not in err
    assert files_of(tmp_path / "here") == LAYOUT | {PULLED} and same_bytes(tmp_path / "here", package.folder, LAYOUT)
    assert read_json(tmp_path / "here" / PULLED)["commit"] == pushed["commit"]
    assert f"{len(LAYOUT) - 1} files as the manifest describes them" in call("verify", "here")[0]


def test_no_token_goes_to_the_host_that_stores_large_files(hub: Hub, package: Package, call: Call) -> None:
    call("push", package.folder, "--repo-id", NAME, "--private")
    assert hub.repositories[NAME].private
    call("pull", NAME)
    assert hub.asked("GET /cdn/") and all(r.token is None for r in hub.asked("/cdn/"))
    assert {r.token for r in hub.asked(f"/{NAME}/resolve/")} == {WRITER}


def test_only_the_files_that_are_needed_are_fetched(hub: Hub, package: Package, call: Call) -> None:
    hub.add_folder(NAME, package.folder)
    out = call("pull", NAME, "--format", "onnx", "--precision", "fp32")[0]
    fetched = {r.path.split("/resolve/")[1].partition("/")[2] for r in hub.asked(f"GET /{NAME}/resolve/")}
    assert fetched == BASE | {"model.fp32.onnx"}
    count = f"{len(BASE)} of {len(LAYOUT) - 1}"
    assert f"{count} files" in out
    folder = out.splitlines()[0]
    assert f"{count} files are here, as the manifest describes them" in call("verify", folder)[0]
    assert f"{count} files are here" in call("verify", NAME)[0], "a source is what was pulled of it"
    assert read_json(Path(folder) / "manifest.json") == package.document
    (Path(folder) / "labels.txt").unlink()
    with pytest.raises(IntegrityError, match=r"labels\.txt is missing"):
        verify_package(Package.open(Path(folder)))


def test_a_later_pull_adds_to_an_earlier_one_and_fetches_nothing_twice(hub: Hub, package: Package) -> None:
    hub.add_folder(NAME, package.folder)
    reference = Reference.parse(NAME)
    part = pull(reference, formats=("onnx",), precisions=("fp16",))
    assert isinstance(part.source, Package) and part.source.artifacts == [] and set(part.files) == BASE - {"manifest.json"}
    verified = verify_package(part.source)
    assert verified["artifacts"]["model.fp32.onnx"]["not_run"].startswith("not here")
    hub.log.clear()
    whole = pull(reference, formats=("safetensors", "onnx")).source
    assert isinstance(whole, Package) and len(whole.here) == len(LAYOUT) - 1
    names = {r.path.rpartition("/")[2] for r in hub.asked(f"GET /{NAME}/resolve/")}
    assert names == {"model.fp32.onnx", "model.safetensors", "config.json"}
    with pytest.raises(UnknownName, match="unknown format 'trt'"):
        pull(reference, formats=("trt",))


def test_a_package_that_was_pulled_in_part_is_not_pushed(hub: Hub, package: Package) -> None:
    hub.add_folder(NAME, package.folder)
    part = pull(Reference.parse(NAME), formats=("onnx",)).source
    with pytest.raises(UsageError, match="pulled in part"):
        push(part.folder, "org/other")
    assert "org/other" not in hub.repositories


def test_a_package_that_does_not_verify_is_not_pushed(hub: Hub, package_copy: Package) -> None:
    (package_copy.folder / "labels.txt").write_text("other\n")
    with pytest.raises(IntegrityError, match=r"labels\.txt"):
        push(package_copy.folder, NAME)
    assert hub.log == [], "something was sent before it was verified"


def test_a_push_removes_what_the_version_before_named_and_nothing_else(hub: Hub, package_copy: Package) -> None:
    folder = package_copy.folder
    first = push(folder, NAME)
    repository = hub.repositories[NAME]
    hub.add(NAME, {**repository.commits[first.commit], "LICENSE": b"ours"})
    document = dict(package_copy.document)
    del document["files"]["config.json"]
    (folder / "config.json").unlink()
    write_json(folder / "manifest.json", document)
    second = push(folder, NAME)
    assert second.removed == ("config.json",) and second.tag != first.tag
    assert set(repository.commits[second.commit]) == (LAYOUT - {"config.json"}) | {"LICENSE", ".gitattributes"}
    assert first.tag and set(repository.commits[repository.tags[first.tag]]) >= LAYOUT, "the version before is still there"


def test_the_same_push_again_changes_nothing(hub: Hub, package: Package, call: Call) -> None:
    first = push(package.folder, NAME)
    out, err = call("push", package.folder, "--repo-id", NAME)
    assert out.strip().endswith(first.commit) and "nothing had changed" in err
    assert hub.repositories[NAME].tags == {first.tag: first.commit} and len(hub.asked("PUT /lfs/")) == 4


def test_a_branch_and_a_pull_request_leave_main_alone(hub: Hub, package: Package) -> None:
    empty = hub.add(NAME, {".gitattributes": b""})
    proposed = push(package.folder, NAME, create_pr=True)
    assert proposed.url.endswith("/discussions/1") and proposed.tag is None
    pushed = push(package.folder, NAME, revision="next")
    repository = hub.repositories[NAME]
    assert repository.branches == {"main": empty, "refs/pr/1": proposed.commit, "next": pushed.commit}
    for revision in ("refs/pr/1", "next", pushed.commit):
        assert pull(Reference.parse(f"{NAME}@{revision}")).commit in (proposed.commit, pushed.commit)


def test_private_is_refused_where_the_repository_is_public(hub: Hub, package: Package) -> None:
    hub.add(NAME, {".gitattributes": b""})
    with pytest.raises(UsageError, match="public already"):
        push(package.folder, NAME, private=True)
    assert not hub.asked("preupload|commit")


def test_a_folder_of_packages_is_one_repository_and_pull_takes_one_of_them(
    hub: Hub, collection: Path, package_of: Callable[[str], Package], call: Call, tmp_path: Path
) -> None:
    pushed = push(collection, NAME)
    files = set(hub.repositories[NAME].commits[pushed.commit])
    assert files == {f"{t}/{n}" for t in "12" for n in LAYOUT} | {"README.md", "manifest.json", ".gitattributes"}
    call("pull", NAME, "--branch", 2, "-o", "two")
    assert same_bytes(tmp_path / "two", package_of("2").folder, LAYOUT)
    assert not hub.asked(f"GET /{NAME}/resolve/\\w+/1/"), "a package that nobody asked for was fetched"
    loaded = kdzoo.load(f"{NAME}@{pushed.tag}", branch=2)
    assert isinstance(loaded, Package) and loaded.document == package_of("2").document
    assert "as the manifest describes them" in call("verify", f"{NAME}#1")[0]
    with pytest.raises(UnknownName) as error:
        kdzoo.load(NAME)
    assert error.value.known == ("1", "2") and "org/name#1" in error.value.hint
    smaller = push(package_of("1").folder, NAME)
    assert set(hub.repositories[NAME].commits[smaller.commit]) == LAYOUT | {".gitattributes"}


def test_packages_of_several_checkpoints_are_no_collection(hub: Hub, collection: Path) -> None:
    folder = next(collection.iterdir())
    document = read_json(folder / "manifest.json")
    document["source"]["epochs"] = 99
    write_json(folder / "manifest.json", document)
    with pytest.raises(UsageError, match="one checkpoint"):
        push(collection, NAME)


def test_a_checkpoint_on_the_hub_is_a_source(hub: Hub, toy_checkpoint: Checkpoint) -> None:
    push(toy_checkpoint.folder, NAME)
    found = resolve_checkpoint(NAME, lambda line: None)
    assert found.manifest == toy_checkpoint.manifest and found.folder.is_relative_to(Path(hub_cache()))
    with pytest.raises(UsageError, match="with all its branches"):
        resolve(NAME, lambda line: None, "1")


def hub_cache() -> str:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def test_every_verb_takes_a_reference(hub: Hub, package: Package, call: Call) -> None:
    pushed = push(package.folder, NAME)
    source = f"{NAME}@{pushed.commit}"
    assert call("card", source)[0].strip() == (package.folder / "README.md").read_text().strip()
    assert json.loads(call("info", source, "--json")[0])["target"] == "1"
    assert "model.fp32.onnx" in call("bench", source, "--seconds", 0.05, "--batch", 1)[0]


def test_a_path_that_is_not_there_is_not_asked_for_on_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    for source in ("runs/nothing", "models/nothing", "./org/name", "/org/name", "org/name/more", "nothing"):
        with pytest.raises(UnknownName, match="unknown source"):
            resolve(source, lambda line: None)
    assert hub.log == []


@pytest.mark.parametrize("seed", range(3))
def test_a_download_that_was_cut_off_goes_on_where_it_stopped(seed: int, hub: Hub, package: Package) -> None:
    hub.add_folder(NAME, package.folder)
    size = (package.folder / "model.fp32.onnx").stat().st_size
    at = random.Random(seed).randrange(1, size)
    hub.cut("model.fp32.onnx", at)
    found = pull(Reference.parse(NAME)).source
    assert isinstance(found, Package)
    asked = [r.range for r in hub.asked(r"GET /cdn/.*/model\.fp32\.onnx")]
    assert asked == [None, f"bytes={at}-"] and verify_package(found)["files"] == len(LAYOUT) - 1


def test_a_pull_that_failed_goes_on_where_it_stopped(hub: Hub, package: Package) -> None:
    hub.add_folder(NAME, package.folder)
    at = 1000
    hub.cut("model.fp32.onnx", at, times=2)
    with pytest.raises(HubError, match="connection to the Hub failed"):
        pull(Reference.parse(NAME))
    hub.log.clear()
    found = pull(Reference.parse(NAME)).source
    assert [r.range for r in hub.asked(r"GET /cdn/.*/model\.fp32\.onnx")] == [f"bytes={at}-"]
    assert isinstance(found, Package) and same_bytes(found.folder, package.folder, LAYOUT)
    assert not list(Path(hub_cache()).rglob("*.incomplete"))


def test_a_reader_pulls_what_is_private(hub: Hub, package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_folder(NAME, package.folder, private=True)
    monkeypatch.delenv("HF_TOKEN")
    assert pull(Reference.parse(NAME), token=READER).files_of == len(LAYOUT) - 1


def test_importing_it_loads_no_heavy_library() -> None:
    modules = "kdzoo.zoo.hub, kdzoo.zoo.reference, kdzoo.export.pull, kdzoo.export.publish, kdzoo.cli.push, kdzoo.cli.pull"
    heavy = "{'torch', 'onnx', 'onnxruntime', 'huggingface_hub', 'httpx', 'httpx2'}"
    code = f"import sys, {modules}; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_select_chooses_from_what_is_published_and_fetches_only_figures(hub: Hub, collection: Path, call: Call) -> None:
    push(collection, NAME)
    found = json.loads(call("select", NAME, "--max-latency", "10s", "--objective", "params", "--json")[0])
    commit = hub.repositories[NAME].branches["main"]
    assert found["fitting"] == 2 and found["path"] == f"{NAME}@{commit}#1/model.fp32.onnx"
    assert not hub.asked(r"GET .*\.(onnx|safetensors|npz)")
    _, told = call("select", f"{NAME}#2", "--max-latency", "10s")
    assert told.endswith(f"next: kdzoo pull '{NAME}@{commit}#2' --format onnx --precision fp32\n")
    again = kdzoo.select(NAME, max_latency="10s", min_top1=0.0).fitting
    assert {candidate.target for candidate in again} == {"1", "2"} and all(candidate.published for candidate in again)
    assert json.loads(call("select", NAME, "--max-latency", "10s", "--offline", "--json")[0])["fitting"] == 2
