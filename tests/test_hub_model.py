"""The student of a package as a model of huggingface_hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from kdzoo.errors import HubError, IntegrityError
from kdzoo.export.exporter import load_student
from kdzoo.export.hub_model import HubStudent
from kdzoo.export.package import Package
from kdzoo.export.publish import push
from kdzoo.tests.hub_server import Hub, own_warnings, serve

pytestmark = own_warnings
IMAGE = torch.linspace(-2, 2, 3 * 32 * 32).reshape(1, 3, 32, 32)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serve(tmp_path / "home") as server:
        yield server


@torch.inference_mode()
def test_a_package_is_loaded_from_a_folder_and_from_the_hub(hub: Hub, package_of: Callable[[str], Package]) -> None:
    package = package_of("1")
    expected = load_student(package)(IMAGE)
    pushed = push(package.folder, "org/name")
    for model in (
        HubStudent.from_pretrained(package.folder),
        HubStudent.from_pretrained("org/name"),
        HubStudent.from_pretrained("org/name", revision=pushed.tag),
    ):
        assert not model.training and torch.equal(model(IMAGE), expected)


@torch.inference_mode()
def test_what_is_saved_is_what_a_package_holds(hub: Hub, package_of: Callable[[str], Package], tmp_path: Path) -> None:
    package = package_of("1")
    model = HubStudent.from_pretrained(package.folder)
    model.save_pretrained(tmp_path / "saved")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "saved" / name).read_bytes() == (package.folder / name).read_bytes()
    assert "library_name: kdzoo" in (tmp_path / "saved" / "README.md").read_text()
    model.push_to_hub("org/other")
    assert torch.equal(HubStudent.from_pretrained("org/other")(IMAGE), model(IMAGE))


def test_weights_that_are_not_those_of_the_config_are_refused(package_copy: Package) -> None:
    path = package_copy.folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        HubStudent.from_pretrained(package_copy.folder)


def test_a_repository_that_is_not_there_is_said(hub: Hub) -> None:
    with pytest.raises(HubError, match="org/nothing does not exist"):
        HubStudent.from_pretrained("org/nothing")
