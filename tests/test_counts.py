"""Parameters and multiply-adds, as exact integers from the papers' tables, from arithmetic, and from PyTorch's own counter."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdzoo.zoo.backbone import BACKBONES
from kdzoo.zoo.method import METHODS
from kdzoo.zoo.network import MultiBranch
from kdzoo.zoo.profile import Profile, profile
from kdzoo.zoo.student import select
from kdzoo.zoo.target import Target


@cache
def network(method: str, backbone: str, num_classes: int = 100, **config: Any) -> MultiBranch:
    """On the meta device: only shapes exist."""
    with torch.device("meta"):
        return METHODS.get(method).from_mapping(config).build(BACKBONES.get(backbone)(), num_classes)


def count(whole: nn.Module, backbone: str) -> Profile:
    return profile(whole, BACKBONES.get(backbone)().image_size)


# Rows of the authors' code (shared/methods.md 1.4): branches 1..4 and the whole training network.
AHBF = [
    ("resnet32", 100, {}, (472_756, 768_692, 1_064_628, 1_360_564), 3_354_418),
    ("resnet18-imagenet", 1000, {"aux": 2}, (11_689_512, 14_050_856, 23_492_136, 25_853_480), 74_617_330),
    ("resnet34-imagenet", 1000, {"aux": 2}, (21_797_672, 24_159_016, 33_600_296, 35_961_640), 113_055_474),
    ("resnet32", 100, {"aux": 2, "compress": True}, (139_700, 287_668, 324_788, 472_756), 1_178_994),
]
AHBF_MACS = [
    ({}, (69_130_496, 88_004_864, 106_879_232, 125_753_600)),
    ({"aux": 2, "compress": True}, (40_818_944, 50_256_128, 59_693_312, 69_130_496)),
]


@pytest.mark.parametrize(("backbone", "num_classes", "config", "branches", "whole"), AHBF)
def test_ahbf_parameters(backbone: str, num_classes: int, config: dict[str, Any], branches: tuple[int, ...], whole: int) -> None:
    net = network("ahbf", backbone, num_classes, **config)
    found = tuple(sum(p.numel() for p in select(net, Target.parse(str(b))).parameters()) for b in (1, 2, 3, 4))
    assert found == branches, "blocks of a branch: see the docstring of methods/ahbf.py, deviations 5 and 6"
    assert sum(p.numel() for p in net.parameters()) == whole, "fusion modules: two per branch after the first"


@pytest.mark.parametrize(("config", "macs"), AHBF_MACS)
def test_ahbf_resnet32_multiply_adds(config: dict[str, Any], macs: tuple[int, ...]) -> None:
    net = network("ahbf", "resnet32", **config)
    assert tuple(count(select(net, Target.parse(str(b))), "resnet32").macs for b in (1, 2, 3, 4)) == macs


# Exact integers, worked out layer by layer by arithmetic over figure 3 and the rule of thop 0.0.31, without kdzoo (two of them
# stand in shared/methods.md 3.1), and the figures that they round to, in M parameters and G multiply-adds: ResNet-34 as
# published in table 4 of the paper, ResNet-18 as computed in shared/methods.md 3.4.
DBFSKD = [
    ("resnet34", 1, 546_101, 239_501_008, "0.55", "0.240"),
    ("resnet34", 2, 1_654_981, 521_702_976, "1.65", "0.522"),
    ("resnet34", 3, 8_450_021, 954_985_744, "8.45", "0.955"),
    ("resnet34", 4, 21_328_292, 1_161_505_280, "21.33", "1.162"),
    ("resnet18", 1, 472_117, 163_741_392, "0.4721", "0.16374"),
    ("resnet18", 2, 990_149, 294_686_272, "0.9901", "0.29469"),
    ("resnet18", 3, 3_062_501, 425_717_008, "3.0625", "0.42572"),
    ("resnet18", 4, 11_220_132, 556_706_304, "11.2201", "0.55671"),
]


@pytest.mark.parametrize(("backbone", "branch", "params", "macs", "stated_m", "stated_g"), DBFSKD)
def test_dbfskd_counts_equal_table_4(backbone: str, branch: int, params: int, macs: int, stated_m: str, stated_g: str) -> None:
    found = count(select(network("dbfskd", backbone), Target.parse(str(branch))), backbone)
    assert (found.params, found.macs_dbfskd) == (params, macs), "readings 5 and 6 of methods/dbfskd.py decide these numbers"
    for value, unit, stated in ((params, 1e6, stated_m), (macs, 1e9, stated_g)):
        assert f"{value / unit:.{len(stated.split('.')[1])}f}" == stated


def residual_network_params(stem_kernel: int, widths: tuple[int, ...], depth: tuple[int, ...], num_classes: int) -> int:
    """Basic blocks with option-B shortcuts, by arithmetic."""
    total, c = stem_kernel**2 * 3 * widths[0] + 2 * widths[0], widths[0]
    for width, blocks in zip(widths, depth, strict=True):
        total += 9 * c * width + (2 * blocks - 1) * 9 * width**2 + 4 * blocks * width
        total += (c * width + 2 * width) if c != width else 0
        c = width
    return total + c * num_classes + num_classes


CIFAR, WIDE = (16, 32, 64), (64, 128, 256, 512)
BACKBONE_PARAMS = {
    **{f"resnet{6 * n + 2}": residual_network_params(3, CIFAR, (n,) * 3, 100) for n in (3, 5, 9, 18)},
    "resnet18": residual_network_params(3, WIDE, (2, 2, 2, 2), 100),
    "resnet34": residual_network_params(3, WIDE, (3, 4, 6, 3), 100),
    "resnet18-imagenet": residual_network_params(7, WIDE, (2, 2, 2, 2), 100),
    "resnet34-imagenet": residual_network_params(7, WIDE, (3, 4, 6, 3), 100),
}


@pytest.mark.parametrize("backbone", BACKBONES.names())
def test_backbone_parameters(backbone: str) -> None:
    assert backbone in BACKBONE_PARAMS, f"{backbone} is new: give its number of parameters from a source that is not kdzoo"
    net = network("baseline", backbone)
    assert count(net, backbone).params == sum(p.numel() for p in net.parameters()) == BACKBONE_PARAMS[backbone]


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_imagenet_backbones_are_those_of_torchvision(name: str) -> None:
    import torchvision

    with torch.device("meta"):
        peer = getattr(torchvision.models, name)(num_classes=1000)
    ours = network("baseline", f"{name}-imagenet", 1000)
    assert sorted(p.shape for p in ours.parameters()) == sorted(p.shape for p in peer.parameters())
    assert count(ours, f"{name}-imagenet").macs == count(peer, f"{name}-imagenet").macs


@pytest.mark.parametrize("backbone", ["resnet20", "resnet18", "resnet18-imagenet"])
@pytest.mark.parametrize("method", METHODS.names())
def test_plain_multiply_adds_are_half_the_flops_that_pytorch_counts(method: str, backbone: str) -> None:
    net, size = network(method, backbone).eval(), BACKBONES.get(backbone)().image_size
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, size, size, device="meta"))
    assert 2 * count(net, backbone).macs == counter.get_total_flops()


def test_counting_leaves_the_network_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=True), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    found = profile(net, 6, 5)
    assert found == Profile(params=112 + 8 + 10, macs=4 * 3 * 27 * 4 + 8, macs_dbfskd=12 * 28 * 4 + 2 * 48 + 13 * 4 + 8)
    assert net.training and not any(layer._forward_hooks for layer in net.modules()) and net[0].weight.device.type == "cpu"


class WithOwnWeight(nn.Module):
    """Has a child, and a weight of its own that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.child, self.weight = nn.Identity(), nn.Parameter(torch.zeros(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("oc,bchw->bohw", self.weight, self.child(x))


@pytest.mark.parametrize("layer", [nn.ConvTranspose2d(3, 3, 3), nn.GroupNorm(1, 3), WithOwnWeight()])
def test_a_layer_without_a_rule_is_refused(layer: nn.Module) -> None:
    with pytest.raises(TypeError, match=f"no counting rule for {type(layer).__name__}"):
        profile(nn.Sequential(nn.ReLU(), layer), 8)
