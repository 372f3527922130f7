"""Registries find what is in their folder; every method and every backbone in them builds and trains."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kdzoo.errors import UnknownName, UsageError
from kdzoo.zoo.backbone import BACKBONES, Backbone
from kdzoo.zoo.losses import sum_of
from kdzoo.zoo.method import METHODS, Method, Progress
from kdzoo.zoo.registry import Registry

# Parameters without a gradient, by method, with the reason. None so far.
NO_GRADIENT: dict[str, set[str]] = {}


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


def train_one_step(method: Method, backbone: Backbone, device: str) -> dict[str, torch.Tensor]:
    """The losses of one batch, after their gradients have been checked."""
    torch.manual_seed(0)
    size = min(backbone.image_size, 64)
    with torch.device(device):
        network = method.build(backbone, 7)
        images, labels = torch.randn(3, 3, size, size), torch.arange(3)
    outputs = network(images)
    assert [tuple(z.shape) for z in outputs.logits] == [(3, 7)] * len(network.branches)
    losses = method.losses(outputs, labels, Progress(0, 10))
    sum_of(losses.values()).backward()
    without = {name for name, p in network.named_parameters() if p.requires_grad and p.grad is None}
    names = {name for name in METHODS.names() if isinstance(method, METHODS.get(name))}
    assert without == set().union(*(NO_GRADIENT.get(n, set()) for n in names)), "the losses do not reach these parameters"
    if device == "cpu":
        unmoving = [n for n, p in network.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        assert not unmoving, "gradients are not finite"
        torch.optim.SGD(network.parameters(), lr=0.1).step()
        assert all(p.isfinite().all() for p in network.parameters())
    return losses


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_trains_a_step(name: str) -> None:
    losses = train_one_step(METHODS.get(name)(), BACKBONES.get("resnet20")(), "cpu")
    assert losses and all(isinstance(key, str) for key in losses)
    for key, loss in losses.items():
        assert loss.shape == () and loss.isfinite(), f"loss part {key}"


@pytest.mark.parametrize("backbone", BACKBONES.names())
@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_trains_every_backbone(name: str, backbone: str) -> None:
    """Shapes and gradient paths only: on the meta device."""
    config = {"aux": 1} if name == "ahbf" else {}  # the defaults train above; 24 more blocks per backbone teach nothing
    losses = train_one_step(METHODS.get(name).from_mapping(config), BACKBONES.get(backbone)(), "meta")
    assert all(loss.shape == () for loss in losses.values())


@pytest.mark.parametrize("backbone", ["resnet18", "resnet18-imagenet", "resnet56"])
def test_a_backbone_of_every_shape_trains_a_step(backbone: str) -> None:
    assert train_one_step(METHODS.get("baseline")(), BACKBONES.get(backbone)(), "cpu")["ce"].isfinite()


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
