"""Parameters of what THFKD, DCKD and FFCL deploy, with 100 classes: integers of shared/methods.md, sections 2.3, 4.1 and 5.1."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from kdzoo.zoo.backbone import BACKBONES
from kdzoo.zoo.method import METHODS
from kdzoo.zoo.network import MultiBranch
from kdzoo.zoo.student import select
from kdzoo.zoo.target import Target

pytestmark = pytest.mark.usefixtures("shapes_only")


@cache
def network(method: str, backbone: str, **config: Any) -> MultiBranch:
    """On the meta device: only shapes exist."""
    with torch.device("meta"):
        return METHODS.get(method).from_mapping(config).build(BACKBONES.get(backbone)(), 100)


def params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


THFKD = {
    "resnet20": (278_324, 323_764, 442_804, 635_572),
    "resnet32": (472_756, 518_196, 637_236, 830_004),
    "resnet56": (861_620, 907_060, 1_026_100, 1_218_868),
    "resnet110": (1_736_564, 1_782_004, 1_901_044, 2_093_812),
    "resnet8x4": (1_233_540, 1_955_972, 3_857_540, 6_938_756),
    "wrn-16-2": (703_028, 884_020, 1_359_668, 2_130_484),
    "wrn-40-2": (2_254_900, 2_435_892, 2_911_540, 3_682_356),
    "mobilenetv2-x0.5": (812_836, 896_676, 1_095_396, 1_409_316),
}


@pytest.mark.parametrize(("backbone", "branches"), THFKD.items(), ids=THFKD)
def test_thfkd_branches(backbone: str, branches: tuple[int, ...]) -> None:
    """The figures of Wide ResNets are those of the code, in which only the deepest branch has a last BatchNorm."""
    net = network("thfkd", backbone, teacher="resnet56", bare_branches=backbone.startswith("wrn"))
    assert tuple(params(select(net, Target.parse(str(b)))) for b in (1, 2, 3, 4)) == branches


def test_thfkd_branches_of_a_wide_resnet_have_a_last_norm_of_their_own_by_default() -> None:
    net = network("thfkd", "wrn-16-2", teacher="resnet56")
    found = tuple(params(select(net, Target.parse(str(b)))) for b in (1, 2, 3, 4))
    assert found == (703_028 + 256, 884_020 + 256, 1_359_668 + 256, 2_130_484), "2 * 128 parameters each; branch 4 had one"


# Teacher, student and the student's deployed parameters. Where a Wide ResNet takes part the figures count the last BatchNorm of the
# teacher to the classifier that is taken over, and none to the student.
DCKD = [
    ("resnet32x4", "resnet8x4", 1_447_556),
    ("wrn-40-2", "resnet8x4", 1_282_948),
    ("resnet32x4", "wrn-40-2", 2_465_332),
    ("resnet110x2", "shufflenetv2-x1.5", 1_858_628),
    ("resnet32x4", "shufflenetv1", 1_182_986),
    ("resnet32x4", "shufflenetv2", 1_042_184),
    ("resnet110x2", "resnet110", 1_792_628),
    ("resnet110x2", "resnet116", 1_889_844),
    ("resnet38x2", "resnet8x4", 1_282_692),
    ("resnet32x4", "mobilenetv2-x0.5", 704_804),
    ("wrn-40-2", "wrn-16-2", 757_044),
    ("wrn-40-2", "wrn-40-1", 625_972),
]


@pytest.mark.parametrize("method", ["dckd", "simkd"])
@pytest.mark.parametrize(("teacher", "student", "deployed"), DCKD)
def test_dckd_students(method: str, teacher: str, student: str, deployed: int) -> None:
    """SimKD has the same network."""
    wide = teacher.startswith("wrn") or student.startswith("wrn")
    net = network(method, student, teacher=teacher, before_last_norm=wide)
    assert params(select(net, Target.parse("target"))) == deployed


@pytest.mark.parametrize("method", ["ffcl", "ffl"])
def test_fusion_module_of_two_resnet18(method: str) -> None:
    net = network(method, "resnet18")
    assert params(net["fusion"]) + params(net["classifier_fused"]) == 587_876


@pytest.mark.parametrize(
    ("backbone", "peer"),
    [
        ("resnet18", 11_220_132),
        ("resnet34", 21_328_292),
        ("shufflenetv1-ffcl", 1_012_108),
        ("shufflenetv2-ffcl", 1_360_896),
        ("wrn-28-10", 36_536_884),
    ],
)
def test_ffcl_peers(backbone: str, peer: int) -> None:
    net = network("ffcl", backbone)
    assert [params(select(net, Target.parse(str(b)))) for b in (1, 2)] == [peer, peer]
