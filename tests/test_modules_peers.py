"""Modules of the methods of peers, heads and exits equal the formulas written out in float64: value and gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdzoo.tests.reference import (
    assert_agree,
    batch_norm,
    conv1x1,
    depthwise3x3,
    double,
    leaf,
    linear,
    pooled,
    relu,
    sigmoid,
    softmax,
)
from kdzoo.zoo.fusion import FeatureFusion
from kdzoo.zoo.methods.byot import bottleneck
from kdzoo.zoo.methods.cl_ilr import RescaleGradient
from kdzoo.zoo.methods.okddip import PeerAttention
from kdzoo.zoo.methods.one import EnsembleGate
from kdzoo.zoo.methods.self_d import SelfAttention
from kdzoo.zoo.sep_conv import sep_conv


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


# The formulas. Nothing in the next three functions calls kdzoo.


def separable(m: Any, x: Tensor, stride: int, training: bool) -> Tensor:
    x = relu(batch_norm(m[2], conv1x1(m[1], depthwise3x3(m[0], x, stride)), training))
    return relu(batch_norm(m[6], conv1x1(m[5], depthwise3x3(m[4], x)), training))


def bilinear(x: Tensor, height: int, width: int) -> Tensor:
    """Pixels are squares: the centre of output i lies at (i + 1/2)·in/out - 1/2 of the input, kept inside."""

    def weights(small: int, large: int) -> Tensor:
        found = torch.zeros(large, small, dtype=x.dtype)
        for i in range(large):
            place = max((i + 0.5) * small / large - 0.5, 0.0)
            low = min(int(place), small - 1)
            high = min(low + 1, small - 1)
            found[i, low] += 1 - (place - low)
            found[i, high] += place - low
        return found

    return torch.einsum("ih,bchw,jw->bcij", weights(x.shape[2], height), x, weights(x.shape[3], width))


def strided(conv: Any, x: Tensor) -> Tensor:
    """A convolution whose kernel is its stride: every output is a sum over one tile."""
    k = conv.kernel_size[0]
    b, c, h, w = x.shape
    tiles = x.reshape(b, c, h // k, k, w // k, k)
    return torch.einsum("bchiwj,ocij->bohw", tiles, conv.weight) + conv.bias[:, None, None]


# The tests.


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sizes", [[(4, 4)] * 3, [(4, 4), (2, 2), (6, 6)]])
def test_feature_fusion(sizes: list[tuple[int, int]], training: bool) -> None:
    shapes = [(c, *size) for c, size in zip((2, 3, 1), sizes, strict=True)]
    module, maps = double(FeatureFusion(shapes, 4)).train(training), [leaf(3, *shape) for shape in shapes]
    small = min(sizes)[0]
    tiles = [x.reshape(3, x.shape[1], small, x.shape[2] // small, small, x.shape[3] // small) for x in maps]
    x = torch.cat([tile.sum(dim=(3, 5)) / (tile.shape[3] * tile.shape[5]) for tile in tiles], dim=1)
    x = relu(batch_norm(module.mix[1], depthwise3x3(module.mix[0], x), training))
    expected = relu(batch_norm(module.project[1], conv1x1(module.project[0], x), training))
    assert_agree(module(*maps), expected, [*maps, *module.parameters()])


@pytest.mark.parametrize("training", [True, False])
def test_gate_of_one(training: bool) -> None:
    module, shared, zs = double(EnsembleGate(5, 3)).train(training), leaf(4, 5, 2, 3), [leaf(4, 6) for _ in range(3)]
    gate = softmax(relu(batch_norm(module.bn, linear(module.linear, pooled(shared)), training)))
    expected = sum(gate[:, m, None] * z for m, z in enumerate(zs))
    assert_agree(module(shared, *zs), expected, [shared, *zs, *module.parameters()])


def test_attention_of_okddip() -> None:
    module, maps = double(PeerAttention(6, 4)), [leaf(3, 6, 2, 3) for _ in range(3)]
    queries, keys = ([linear(layer, pooled(x)) for x in maps] for layer in (module.query, module.key))
    rows = [softmax(torch.stack([(q * k).sum(dim=1) for k in keys], dim=1)) for q in queries]
    assert_agree(module(*maps), torch.stack(rows, dim=1), [*maps, *module.parameters()])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("expansion", "stride"), [(1.0, 2), (1.5, 1)])
def test_separable_convolution(expansion: float, stride: int, training: bool) -> None:
    module, x = double(sep_conv(3, 4, expansion, stride)).train(training), leaf(3, 3, 5, 4)
    assert_agree(module(x), separable(module, x, stride, training), [x, *module.parameters()])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(6, 4), (5, 3)])
def test_attention_of_self_d(size: tuple[int, int], training: bool) -> None:
    module, x = double(SelfAttention(3)).train(training), leaf(3, 3, *size)
    coarse = relu(batch_norm(module.coarse[1], separable(module.coarse[0], x, 2, training), training))
    expected = x * sigmoid(bilinear(coarse, *size))
    assert_agree(module(x), expected, [x, *module.parameters()])


@pytest.mark.parametrize("training", [True, False])
def test_exit_of_byot(training: bool) -> None:
    module, x = double(bottleneck(3, 8, 2)).train(training), leaf(3, 3, 6, 4)
    expected = relu(batch_norm(module[1], conv1x1(module[0], x), training))
    expected = relu(batch_norm(module[4], strided(module[3], expected), training))
    expected = relu(batch_norm(module[7], conv1x1(module[6], expected), training))
    assert_agree(module(x), expected, [x, *module.parameters()])


def test_cl_ilr_rescales_gradients_and_nothing_else() -> None:
    module, x = RescaleGradient(0.25), leaf(2, 3, 4, 4)
    weight = torch.randn_like(x)
    assert torch.equal(module(x), x)
    (gradient,) = torch.autograd.grad((module(x) * weight).sum(), x)
    torch.testing.assert_close(gradient, weight / 4, rtol=0, atol=0)
    assert module.eval()(x) is x, "what is deployed has no such node"
    assert not list(module.state_dict())
