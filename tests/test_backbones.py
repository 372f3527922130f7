"""Every backbone is what it says of itself; the blocks compute what their papers (or torchvision's blocks) do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.densenet import DenseNet as TorchvisionDenseNet
from torchvision.models.mobilenetv2 import InvertedResidual as TorchvisionInvertedResidual
from torchvision.ops import SqueezeExcitation as TorchvisionSqueezeExcitation

from kdzoo.zoo.backbone import BACKBONES, Backbone
from kdzoo.zoo.backbones.mobilenet_v2 import InvertedResidual
from kdzoo.zoo.backbones.resnet_cifar import Bottleneck
from kdzoo.zoo.backbones.senet import SEBasicBlock, SqueezeExcitation
from kdzoo.zoo.backbones.shufflenet_v1 import ChannelShuffle, ShuffleUnit
from kdzoo.zoo.backbones.vgg import VGG
from kdzoo.zoo.backbones.wide_resnet import PreActivationBlock, WideResNet
from kdzoo.zoo.method import METHODS

Shapes = list[torch.Size]


def shapes(*modules: nn.Module) -> Shapes:
    return [tensor.shape for module in modules for tensor in module.state_dict().values()]


def images(backbone: Backbone, size: int = 0) -> Tensor:
    return torch.zeros(2, 3, size or backbone.image_size, size or backbone.image_size, device="meta")


@pytest.mark.usefixtures("shapes_only")
@pytest.mark.parametrize("name", BACKBONES.names())
def test_body_and_classifier_are_the_baseline_network_however_it_is_split(name: str) -> None:
    backbone = BACKBONES.get(name)()
    stages = len(backbone.depths)
    with torch.device("meta"):
        whole = METHODS.get("baseline")().build(backbone, 7)
        body, classifier = backbone.body(), backbone.classifier(7)
        assert shapes(body, classifier) == shapes(whole)
        for k in {0, stages - backbone.branch_stages}:
            trunk, make_branch = backbone.split(k)
            branch = make_branch(backbone.depths[k:])
            assert shapes(trunk, branch) == shapes(body), f"cut after stage {k}"
            with pytest.raises(AssertionError):
                make_branch((*backbone.depths[k:], 1))
        features = body(images(backbone))
    assert features.shape == (2, *backbone.map_shape()) and features.shape[1] == backbone.out_channels()
    assert classifier(features).shape == (2, 7)
    assert len(backbone.widths) == stages and 1 <= backbone.branch_stages <= stages


@pytest.mark.usefixtures("shapes_only")
@pytest.mark.parametrize("name", BACKBONES.names())
def test_stages_of_any_depth_have_the_channels_that_the_backbone_states(name: str) -> None:
    backbone = BACKBONES.get(name)()
    last = len(backbone.depths) - 1
    with torch.device("meta"):
        value = backbone.stem()(images(backbone))
        for index, own in enumerate(backbone.depths):
            out = [backbone.stage(index, depth)(value) for depth in (1, 2)]
            assert [o.shape[1] for o in out] == [backbone.channels(index, depth) for depth in (1, 2)], f"stage {index}"
            assert backbone.widths[index] == backbone.channels(index, own)
            assert index == last or out[0].shape == out[1].shape, "the next stage cannot know how deep this one is"
            value = out[0]
        for depth, features in zip((1, 2), out, strict=True):
            neck = backbone.neck(backbone.channels(last, depth))
            features = features if neck is None else neck(features)
            assert features.shape[1] == backbone.out_channels(depth)
            assert backbone.classifier(7, backbone.out_channels(depth))(features).shape == (2, 7)


@pytest.mark.usefixtures("shapes_only")
@pytest.mark.parametrize("name", BACKBONES.names())
def test_the_resolution_halves_from_exit_to_exit_and_to_the_end(name: str) -> None:
    """What a method that leads an exit to the shape of the last map relies on."""
    backbone = BACKBONES.get(name)()
    exits = backbone.exit_stages()
    assert list(exits) == sorted(set(exits)) and exits[-1] < len(backbone.depths) - 1
    sizes = []
    with torch.device("meta"):
        value = backbone.stem()(images(backbone))
        for index in range(len(backbone.depths)):
            value = backbone.stage(index, 1)(value)
            if index in exits or index == len(backbone.depths) - 1:
                sizes.append(value.shape[-1])
    assert sizes == [sizes[-1] * 2**n for n in reversed(range(len(exits) + 1))]


FAMILIES = ["resnet20", "resnet18-imagenet", "wrn-16-2", "vgg8", "vgg16", "densenet40-12-bc", "mobilenetv2", "shufflenetv1"]


@pytest.mark.usefixtures("shapes_only")
@pytest.mark.parametrize("name", [*FAMILIES, "shufflenetv2", "senet18"])
def test_a_backbone_takes_images_of_another_size(name: str) -> None:
    backbone = BACKBONES.get(name)()
    with torch.device("meta"):
        network = METHODS.get("baseline")().build(backbone, 7)
        assert network(images(backbone, 96)).logits[0].shape == (2, 7)


@pytest.mark.usefixtures("shapes_only")
@pytest.mark.parametrize("name", BACKBONES.names())
def test_no_part_of_a_backbone_changes_its_input(name: str) -> None:
    """Maps are the inputs of losses and of other nodes; a ReLU in place would spoil them."""
    backbone = BACKBONES.get(name)()
    with torch.device("meta"):
        parts = [backbone.stem(), *(backbone.stage(i, 1) for i in range(len(backbone.depths)))]
        neck = backbone.neck(backbone.channels(len(backbone.depths) - 1, 1))
        parts += [] if neck is None else [neck]
        value = images(backbone)
        for part in [*parts, backbone.classifier(7, backbone.out_channels(1))]:
            version, result = value._version, part(value)
            assert value._version == version, f"{type(part).__name__} writes into its input"
            value = result


# A backbone of every family, whose weights are drawn: standard deviation of a convolution's weights, and of the classifier's.
DRAWN: list[tuple[str, Callable[[int, int], float], float | None, bool]] = [
    ("resnet20", lambda fan_in, fan_out: (2 / fan_out) ** 0.5, None, False),
    ("wrn-16-2", lambda fan_in, fan_out: (2 / fan_out) ** 0.5, None, True),
    ("vgg8", lambda fan_in, fan_out: (2 / fan_out) ** 0.5, 0.01, True),
    ("densenet40-12-bc", lambda fan_in, fan_out: (2 / fan_in) ** 0.5, None, True),
    ("mobilenetv2-x0.5", lambda fan_in, fan_out: (2 / fan_out) ** 0.5, 0.01, True),
    ("shufflenetv1", lambda fan_in, fan_out: (1 / (3 * fan_in)) ** 0.5, None, False),
    ("shufflenetv2", lambda fan_in, fan_out: (1 / (3 * fan_in)) ** 0.5, None, False),
]


@pytest.mark.parametrize(("name", "expected", "linear", "zero_bias"), DRAWN)
def test_weights_are_drawn_as_the_paper_or_its_code_does(
    name: str, expected: Callable[[int, int], float], linear: float | None, zero_bias: bool
) -> None:
    torch.manual_seed(0)
    layers = list(METHODS.get("baseline")().build(BACKBONES.get(name)(), 100).modules())
    assert {nn.Conv2d, nn.Linear} <= {type(layer) for layer in layers if sum(p.numel() for p in layer.parameters()) > 5000}
    for layer in layers:
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 5000:
            window = layer.weight[0, 0].numel()
            # Fan out without regard to groups, as PyTorch and the reference code count it.
            std = expected(layer.weight[0].numel(), layer.out_channels * window)
            assert layer.weight.std().item() == pytest.approx(std, rel=0.06)
            assert layer.bias is None or not layer.bias.any()
        elif isinstance(layer, nn.Linear):
            assert linear is None or layer.weight.std().item() == pytest.approx(linear, rel=0.06)
            assert bool(layer.bias.any()) is not zero_bias


def fill(module: nn.Module) -> nn.Module:
    """Float64, every tensor random, BatchNorm with statistics of its own; evaluation mode."""
    torch.manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, *((0.5, 1.5) if "var" in name else (-0.5, 0.5)))
    return module.double().eval()


def same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Copy, in order: both have the same tensors in the same order, but for dimensions of one."""
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        b.copy_(a.view_as(b))


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 24, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) - 0.3


def agree(ours: Tensor, reference: Tensor) -> None:
    torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-11)


@torch.no_grad()
def test_bottleneck_is_that_of_torchvision(x: Tensor) -> None:
    """The wide and the grouped one as well; `zoo.foreign` compares whole networks, but only of four widths."""
    for stride, narrow, groups in ((1, 4, 1), (2, 2, 1), (2, 2, 4)):
        ours = fill(Bottleneck(24, 32, stride, narrow, groups))
        width = 64 * 4 // (narrow * groups)
        down = nn.Sequential(nn.Conv2d(24, 32, 1, stride, bias=False), nn.BatchNorm2d(32))
        peer = torchvision.models.resnet.Bottleneck(24, 8, stride, down, groups, width)
        same_weights(ours, peer)
        agree(ours(x), peer.double().eval()(x))


@torch.no_grad()
def test_dense_stages_are_those_of_torchvision(x: Tensor) -> None:
    backbone = BACKBONES.get("densenet40-12-bc")()
    ours = fill(nn.Sequential(*(backbone.stage(i, depth) for i, depth in enumerate(backbone.depths))))
    peer = TorchvisionDenseNet(growth_rate=12, block_config=(6, 6, 6), num_init_features=24).features[4:]
    same_weights(ours, peer)
    agree(ours(x), F.relu(peer.double().eval()(x)))


@pytest.mark.parametrize(("out_channels", "stride"), [(24, 1), (24, 2), (40, 1)])
@torch.no_grad()
def test_inverted_residual_is_that_of_torchvision(out_channels: int, stride: int, x: Tensor) -> None:
    ours = fill(InvertedResidual(24, out_channels, stride, 6))
    peer = TorchvisionInvertedResidual(24, out_channels, stride, 6)
    same_weights(ours, peer)
    small = 0.1 * x  # ReLU6 is ReLU below 6
    agree(ours(small), peer.double().eval()(small))


@torch.no_grad()
def test_squeeze_excitation_is_that_of_torchvision_and_weighs_the_residual_alone(x: Tensor) -> None:
    ours, peer = fill(SqueezeExcitation(24, 4)), TorchvisionSqueezeExcitation(24, 6)
    same_weights(ours, peer)
    agree(ours(x), peer.double()(x))

    block = fill(SEBasicBlock(24, 24))
    agree(block(x), F.relu(x + block.se(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x))))))))
    for tensor in block.se.gate[2].parameters():
        tensor.fill_(-1e3)
    agree(block(x), F.relu(x))


@torch.no_grad()
def test_pre_activation_block_is_figure_1_of_its_paper(x: Tensor) -> None:
    for out_channels, stride in ((24, 1), (32, 1), (32, 2)):
        block = fill(PreActivationBlock(24, out_channels, stride))
        active = F.relu(block.bn1(x))
        out = F.conv2d(active, block.conv1.weight, None, stride, 1)
        out = F.conv2d(F.relu(block.bn2(out)), block.conv2.weight, None, 1, 1)
        changes = block.shortcut is not None
        assert changes is (out_channels != 24)
        agree(block(x), out + (F.conv2d(active, block.shortcut.weight, None, stride) if changes else x))


@torch.no_grad()
def test_the_last_wide_stage_is_its_blocks_and_one_activation() -> None:
    backbone = WideResNet(16, 2)
    stage, blocks = backbone.stage(2, 2), backbone.blocks(2, 2)
    assert shapes(stage) == shapes(blocks, backbone.final_activation()) and len(shapes(backbone.final_activation())) == 5
    assert shapes(backbone.stage(1, 2)) == shapes(backbone.blocks(1, 2))
    value = fill(stage)(torch.randn(2, 64, 4, 4, dtype=torch.float64))
    assert (value >= 0).all() and (fill(blocks)(torch.randn(2, 64, 4, 4, dtype=torch.float64)) < 0).any()


@torch.no_grad()
def test_shuffle_is_that_of_torch(x: Tensor) -> None:
    for groups in (1, 2, 3):
        assert torch.equal(ChannelShuffle(groups)(x), nn.ChannelShuffle(groups)(x))


@pytest.mark.parametrize(
    ("in_channels", "halves", "ffcl"), [(24, True, False), (24, True, True), (48, True, False), (96, False, True)]
)
@torch.no_grad()
def test_shuffle_unit_is_figure_2_of_its_paper(in_channels: int, halves: bool, ffcl: bool) -> None:
    unit = fill(ShuffleUnit(in_channels, 96, halves, ffcl))
    x = torch.rand(2, in_channels, 8, 8, dtype=torch.float64) - 0.3
    own = 96 - in_channels if halves else 96
    inner, groups = (96 if ffcl else own) // 4, 1 if in_channels == 24 and not ffcl else 3
    (c1, b1), (c2, b2), (c3, b3) = (
        [layer for i, layer in enumerate(unit.residual) if i in pair] for pair in ((0, 1), (4, 5), (7, 8))
    )
    assert [c.weight.shape[:2] for c in (c1, c2, c3)] == [(inner, in_channels // groups), (inner, 1), (own, inner // 3)]

    out = F.relu(b1(F.conv2d(x, c1.weight, c1.bias, groups=groups)))
    out = torch.stack([out[:, i * inner // groups + j] for j in range(inner // groups) for i in range(groups)], dim=1)
    out = b2(F.conv2d(out, c2.weight, c2.bias, 2 if halves else 1, 1, groups=inner))
    out = b3(F.conv2d(out if ffcl else F.relu(out), c3.weight, c3.bias, groups=3))
    agree(unit(x), F.relu(torch.cat([out, F.avg_pool2d(x, 3, 2, 1)], 1) if halves else out + x))


@torch.no_grad()
def test_vgg_pools_where_its_two_lines_of_code_do() -> None:
    x = torch.zeros(1, 3, 32, 32, device="meta")
    sizes: dict[str, list[int]] = {}
    for name in ("vgg8", "vgg16"):
        backbone, value = BACKBONES.get(name)(), x
        assert isinstance(backbone, VGG)
        with torch.device("meta"):
            for i, depth in enumerate(backbone.depths):
                value = backbone.stage(i, depth)(value)
                sizes.setdefault(name, []).append(value.shape[-1])
    assert sizes == {"vgg8": [32, 16, 8, 4, 4], "vgg16": [16, 8, 4, 2, 1]}
