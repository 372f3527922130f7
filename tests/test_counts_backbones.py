"""Parameters of every backbone with 100 classes: from arithmetic over its paper's table, and as papers or their code state them.

Multiply-adds: half the flops that PyTorch's own counter finds.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from kdzoo.zoo.backbone import BACKBONES
from kdzoo.zoo.foreign import TORCHVISION
from kdzoo.zoo.method import METHODS
from kdzoo.zoo.network import MultiBranch
from kdzoo.zoo.profile import profile

pytestmark = pytest.mark.usefixtures("shapes_only")


def baseline(backbone: str, num_classes: int = 100) -> MultiBranch:
    """On the meta device: only shapes exist."""
    with torch.device("meta"):
        return METHODS.get("baseline")().build(BACKBONES.get(backbone)(), num_classes)


def conv(kernel: int, a: int, b: int, groups: int = 1, bias: bool = False, norm: bool = True) -> int:
    """Parameters of a convolution from a to b channels with its BatchNorm."""
    return kernel**2 * a * b // groups + bias * b + 2 * norm * b


Block = Callable[[int, int], int]


def basic(a: int, b: int) -> int:
    return conv(3, a, b) + conv(3, b, b) + (conv(1, a, b) if a != b else 0)


def with_se(a: int, b: int) -> int:
    return basic(a, b) + (b + 1) * b // 16 + (b // 16 + 1) * b


def bottleneck(narrow: int, groups: int) -> Block:
    return lambda a, b: (
        conv(1, a, b // narrow)
        + conv(3, b // narrow, b // narrow, groups)
        + conv(1, b // narrow, b)
        + (conv(1, a, b) if a != b else 0)
    )


def pre_activation(a: int, b: int) -> int:
    return 2 * a + conv(3, a, b) + conv(3, b, b, norm=False) + (a * b if a != b else 0)


def residual(stem: int, first: int, widths: tuple[int, ...], depths: tuple[int, ...], block: Block = basic) -> int:
    """A stem of so many parameters that gives `first` channels, stages of blocks, a linear layer for 100 classes."""
    total, c = stem, first
    for width, depth in zip(widths, depths, strict=True):
        total, c = total + block(c, width) + (depth - 1) * block(width, width), width
    return total + 100 * c + 100


def cifar_resnet(depth: int, factor: int, first: int) -> int:
    return residual(conv(3, 3, first), first, (16 * factor, 32 * factor, 64 * factor), ((depth - 2) // 6,) * 3)


def wide_resnet(depth: int, factor: int) -> int:
    widths = (16 * factor, 32 * factor, 64 * factor)
    return residual(conv(3, 3, 16, norm=False), 16, widths, ((depth - 4) // 6,) * 3, pre_activation) + 2 * widths[-1]


def mobilenet(width: float) -> int:
    rows = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
    c = int(32 * width)
    total = conv(3, 3, c)
    for t, channels, blocks in rows:
        for _ in range(blocks):
            out = int(channels * width)
            total, c = total + conv(1, c, t * c) + conv(3, t * c, t * c, t * c) + conv(1, t * c, out), out
    return total + conv(1, c, 1280) + 1281 * 100


def shufflenet_v1() -> int:
    total, c = conv(1, 3, 24), 24
    for width, units in ((240, 4), (480, 8), (960, 4)):
        for first in (True, *(False,) * (units - 1)):
            own = width - c if first else width
            inner = own // 4
            total += conv(1, c, inner, 1 if c == 24 else 3) + conv(3, inner, inner, inner) + conv(1, inner, own, 3)
            c = width
    return total + 961 * 100


def shufflenet_v2(widths: tuple[int, ...], stem_kernel: int) -> int:
    total, c = conv(stem_kernel, 3, 24), 24
    for width, units in zip(widths, (3, 7, 3), strict=True):
        h = width // 2
        total += conv(3, c, c, c) + conv(1, c, h) + conv(1, c, h) + conv(3, h, h, h) + conv(1, h, h)
        total, c = total + units * (2 * conv(1, h, h) + conv(3, h, h, h)), width
    return total + conv(1, c, 1024) + 1025 * 100


def vgg(depths: tuple[int, ...]) -> int:
    total, c = 513 * 100, 3
    for width, depth in zip((64, 128, 256, 512, 512), depths, strict=True):
        total, c = total + conv(3, c, width, bias=True) + (depth - 1) * conv(3, width, width, bias=True), width
    return total


WIDE, WIDER = (64, 128, 256, 512), (256, 512, 1024, 2048)
STEMS = {"": conv(3, 3, 64), "-imagenet": conv(7, 3, 64)}
BACKBONE_PARAMS = {
    **{f"resnet{d}": cifar_resnet(d, 1, 16) for d in (8, 14, 20, 32, 38, 44, 56, 110, 116)},
    **{f"resnet{d}x2": cifar_resnet(d, 2, 16) for d in (14, 38, 110)},
    **{f"resnet{d}x4": cifar_resnet(d, 4, 32) for d in (8, 20, 32)},
    "resnet110-bottleneck": residual(conv(3, 3, 16), 16, (64, 128, 256), (12, 12, 12), bottleneck(4, 1)),
    **{f"resnet18{s}": residual(n, 64, WIDE, (2, 2, 2, 2)) for s, n in STEMS.items()},
    "resnet18-x0.5": residual(conv(3, 3, 32), 32, (32, 64, 128, 256), (2, 2, 2, 2)),
    **{f"resnet34{s}": residual(n, 64, WIDE, (3, 4, 6, 3)) for s, n in STEMS.items()},
    **{f"senet18{s}": residual(n, 64, WIDE, (2, 2, 2, 2), with_se) for s, n in STEMS.items()},
    **{f"resnet50{s}": residual(n, 64, WIDER, (3, 4, 6, 3), bottleneck(4, 1)) for s, n in STEMS.items()},
    **{f"resnet101{s}": residual(n, 64, WIDER, (3, 4, 23, 3), bottleneck(4, 1)) for s, n in STEMS.items()},
    **{f"wide-resnet50-2{s}": residual(n, 64, WIDER, (3, 4, 6, 3), bottleneck(2, 1)) for s, n in STEMS.items()},
    **{f"resnext50{s}": residual(n, 64, WIDER, (3, 4, 6, 3), bottleneck(2, 32)) for s, n in STEMS.items()},
    **{f"wrn-{d}-{k}": wide_resnet(d, k) for d, k in ((16, 2), (40, 1), (40, 2), (28, 10))},
    "vgg8": vgg((1, 1, 1, 1, 1)),
    "vgg13": vgg((2, 2, 2, 2, 2)),
    "vgg16": vgg((2, 2, 3, 3, 3)) + 2 * 513 * 512,
    "mobilenetv2": mobilenet(1.0),
    "mobilenetv2-x0.5": mobilenet(0.5),
    "shufflenetv1": shufflenet_v1(),
    "shufflenetv2": shufflenet_v2((116, 232, 464), 1),
    "shufflenetv2-x1.5": shufflenet_v2((176, 352, 704), 1),
    "shufflenetv2-imagenet": shufflenet_v2((116, 232, 464), 3),
}
# Totals that papers or their code state: shared/methods.md 1.4, 2.1, 2.3, 5.1, and the toolbox of CRD.
STATED = {
    "resnet8x4": 1_233_540,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet32x4": 7_433_860,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet110-bottleneck": 1_170_868,
    "resnet18": 11_220_132,
    "resnet34": 21_328_292,
    "wrn-16-2": 703_284,
    "wrn-40-1": 569_780,
    "wrn-40-2": 2_254_900 + 256,  # the last BatchNorm, which branch 1 of THFKD lacks
    "wrn-28-10": 36_536_884,
    "vgg8": 3_965_028,
    "vgg13": 9_462_180,
    "vgg16": 15_299_748,
    "densenet40-12-bc": 188_092,
    "mobilenetv2-x0.5": 812_836,
    "shufflenetv1": 949_258,
    "shufflenetv1-ffcl": 1_012_108,
    "shufflenetv2": 1_355_528,
    "shufflenetv2-ffcl": 1_360_896,
}


def test_arithmetic_gives_the_stated_totals() -> None:
    assert {name: BACKBONE_PARAMS.get(name, total) for name, total in STATED.items()} == STATED


@pytest.mark.parametrize("backbone", BACKBONES.names())
def test_backbone_counts(backbone: str) -> None:
    known = BACKBONE_PARAMS | STATED
    assert backbone in known, f"{backbone} is new: give its number of parameters from a source that is not kdzoo"
    net, size = baseline(backbone).eval(), BACKBONES.get(backbone)().image_size
    found = profile(net, size)
    assert found.params == sum(p.numel() for p in net.parameters()) == known[backbone]
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, size, size, device="meta"))
    assert 2 * found.macs == counter.get_total_flops()


@pytest.mark.parametrize("backbone", TORCHVISION)
def test_imagenet_backbones_are_those_of_torchvision(backbone: str) -> None:
    with torch.device("meta"):
        peer = getattr(torchvision.models, TORCHVISION[backbone][0])(num_classes=1000)
    ours = baseline(backbone, 1000)
    assert sorted(p.shape for p in ours.parameters()) == sorted(p.shape for p in peer.parameters())
    assert profile(ours, 224).macs == profile(peer, 224).macs
