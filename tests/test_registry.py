"""Registries find what is in their folder; every method and every backbone in them builds and trains."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdzoo.errors import UnknownName, UsageError
from kdzoo.tests.small_methods import small_method
from kdzoo.zoo.backbone import BACKBONES
from kdzoo.zoo.losses import sum_of
from kdzoo.zoo.method import METHODS, Progress
from kdzoo.zoo.registry import Registry


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `kdzoo_things` that is not imported yet; forgotten afterwards."""
    package = tmp_path / "kdzoo_things"
    package.mkdir()
    (package / "__init__.py").write_text("from kdzoo.zoo.registry import Registry\nTHINGS = Registry('thing', 'kdzoo_things')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield package
    for name in set(sys.modules) - before:
        if name.startswith("kdzoo_things"):
            del sys.modules[name]


def write_thing(package: Path, module: str, name: str) -> None:
    (package / f"{module}.py").write_text(f"from . import THINGS\n\n@THINGS.register('{name}')\ndef thing(): ...\n")


def test_a_file_in_the_folder_is_found_at_the_first_lookup_and_not_before(folder: Path) -> None:
    write_thing(folder, "one", "first")
    write_thing(folder, "two", "second")
    from kdzoo_things import THINGS  # type: ignore[import-not-found]

    assert "kdzoo_things.one" not in sys.modules, "discovery must wait for a lookup"
    assert THINGS.names() == ["first", "second"]
    assert THINGS.get("second").__name__ == "thing"


def test_two_things_of_one_name_are_refused(folder: Path) -> None:
    write_thing(folder, "one", "same")
    write_thing(folder, "two", "same")
    from kdzoo_things import THINGS

    with pytest.raises(ValueError, match="thing 'same' is registered twice"):
        THINGS.names()


@pytest.mark.parametrize(
    ("registry", "name", "suggestion"),
    [(METHODS, "ahfb", "ahbf"), (METHODS, "DBFSKD", None), (BACKBONES, "resnet-32", "resnet32"), (BACKBONES, "xyz", None)],
)
def test_an_unknown_name_gets_the_known_ones_and_the_nearest(registry: Registry[Any], name: str, suggestion: str | None) -> None:
    with pytest.raises(UnknownName, match=f"unknown {registry.kind} '{name}'") as caught:
        registry.get(name)
    assert caught.value.suggestion == suggestion and list(caught.value.known) == registry.names()


@pytest.mark.parametrize("registry", [METHODS, BACKBONES], ids=lambda r: r.kind)
def test_every_file_of_a_folder_registers_something(registry: Registry[Any]) -> None:
    files = {p.stem for p in (Path(__file__).parent.parent / "zoo" / f"{registry.kind}s").glob("*.py")} - {"__init__"}
    registering = {registry.get(name).__module__.rpartition(".")[2] for name in registry.names()}
    assert files == registering


def one_of_every_shape() -> list[str]:
    """The shallowest backbone of those of one class that are alike for a method but for widths and depths."""
    found: dict[object, tuple[int, str]] = {}
    for name in BACKBONES.names():
        backbone = BACKBONES.get(name)()
        shape = (type(backbone), len(backbone.depths), backbone.image_size, backbone.branch_stages, backbone.exits)
        found[shape] = min(found.get(shape, (1000, "")), (sum(backbone.depths), name))
    return sorted(name for _, name in found.values())


def methods_and_backbones() -> list[tuple[str, str]]:
    """Every method with one backbone of each arrangement of stages, branches and exits, which is all that a method sees of it; by
    turns, so that every one of `one_of_every_shape` is met, and by several methods."""
    alike: dict[object, list[str]] = {}
    for name in one_of_every_shape():
        backbone = BACKBONES.get(name)()
        alike.setdefault((len(backbone.depths), backbone.branch_stages, backbone.exits), []).append(name)
    pairs = [(method, names[n % len(names)]) for n, method in enumerate(METHODS.names()) for names in alike.values()]
    assert {backbone for _, backbone in pairs} == set(one_of_every_shape())
    return pairs


@pytest.fixture
def quick_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device BatchNorm takes most of the time; here it is what it does to shapes and to its parameters."""

    def scale_and_shift(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, *settings: object) -> Tensor:
        shape = (1, -1, *(1 for _ in x.shape[2:]))
        return torch.addcmul(bias.view(shape), x, weight.view(shape))

    monkeypatch.setattr(torch.nn.functional, "batch_norm", scale_and_shift)


@pytest.mark.usefixtures("quick_batch_norm")
@pytest.mark.parametrize(("name", "backbone"), methods_and_backbones())
def test_every_method_trains_backbones_of_every_shape(name: str, backbone: str) -> None:
    """Shapes and gradient paths only: on the meta device. `test_contract` computes a step of every method."""
    method = small_method(name)
    with torch.device("meta"):
        recipe = BACKBONES.get(backbone)()
        size = min(recipe.image_size, 64)
        network = method.build(recipe, 7)
        images, labels = torch.randn(3, 3, size, size), torch.arange(3)
        teachers = [METHODS.get("baseline")().build(BACKBONES.get(name)(), 7).eval() for name in method.teachers(backbone)]
    outputs = replace(network(images), teachers=tuple(teacher(images) for teacher in teachers))
    assert [tuple(z.shape) for z in outputs.logits] == [(3, 7)] * len(network.branches)
    losses = method.losses(outputs, labels, Progress(0, 10))
    assert losses and all(loss.shape == () for loss in losses.values())
    sum_of(losses.values()).backward()
    without = {name for name, p in network.named_parameters() if p.requires_grad and p.grad is None}
    assert not without, "the losses do not reach these parameters"


@pytest.mark.parametrize("name", METHODS.names())
def test_settings_are_read_back(name: str) -> None:
    method = METHODS.get(name)()
    assert type(method).from_mapping(method.settings()).config == method.config


def test_changed_settings_are_read_back() -> None:
    values = {"num_branches": 3, "aux": 1, "compress": True, "temperature": 2, "lambda_takl": 0.5}
    method = METHODS.get("ahbf").from_mapping(values)
    assert values.items() <= method.settings().items(), "an integer is good for a number with a fraction"
    assert type(method).from_mapping(method.settings()).config == method.config


@pytest.mark.parametrize(
    ("method", "values", "what"),
    [
        ("ahbf", {"num_branches": "4"}, "num_branches"),
        ("ahbf", {"num_branches": 4.0}, "num_branches"),
        ("ahbf", {"num_branches": True}, "num_branches"),
        ("ahbf", {"temperature": True}, "temperature"),
        ("ahbf", {"epsilon": "1e-7"}, "epsilon"),  # YAML reads 1e-7 as a text
        ("ahbf", {"compress": 1}, "compress"),
        ("ahbf", {"aux": None}, "aux"),
        ("dbfskd", {"div_reduction": 7}, "div_reduction"),
        ("dbfskd", {"div_reduction": "eq8"}, "div_reduction"),
        ("ahbf", {"num_branches": 1}, "2 branches"),
        ("ahbf", {"aux": -1}, "aux"),
    ],
)
def test_settings_of_a_wrong_kind_are_refused(method: str, values: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        METHODS.get(method).from_mapping(values)


def test_an_unknown_setting_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownName) as caught:
        METHODS.get("ahbf").from_mapping({"lambda_tkal": 1.0})
    assert caught.value.suggestion == "lambda_takl"
    with pytest.raises(UnknownName):
        METHODS.get("baseline").from_mapping({"temperature": 3.0})


@pytest.mark.parametrize("config", [{"branch_stages": 4}, {"branch_stages": -1}, {"compress": True, "aux": 4}])
def test_an_impossible_network_is_refused_before_it_is_built(config: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        METHODS.get("ahbf").from_mapping(config).build(BACKBONES.get("resnet20")(), 5)
