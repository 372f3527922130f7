"""Formulas that several loss tests share, written out with exp, log and sums in float64, and how two results are compared.

Nothing here calls kdzoo or a loss of PyTorch. Import it as `kdzoo.tests.reference`.

Shapes: `B` batch, `C` channels, `H` `W` space, `K` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def leaf(*shape: int) -> Tensor:
    """Random values of some size, so that a softmax of them is far from flat."""
    return (3 * torch.randn(*shape, dtype=torch.float64)).requires_grad_()


def double(module: nn.Module) -> nn.Module:
    """In float64, with parameters away from 0 and 1 and BatchNorm statistics away from initialisation; in training mode."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.4, 1.6).mul_(torch.randn_like(tensor).sign() if tensor.ndim > 1 else 1)
    return module.double()


def assert_agree(ours: Tensor, reference: Tensor, leaves: Sequence[Tensor], what: str = "") -> None:
    """Same value and same gradient with respect to every leaf, to 1e-6 relative; all of them finite."""

    def close(a: Tensor, b: Tensor, name: str) -> None:
        assert b.isfinite().all(), f"{what} {name}: the formula itself is not finite"
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-11, msg=lambda m: f"{what} {name} differs from the formula: {m}")

    close(ours, reference, "value")
    weight = torch.randn_like(reference)
    totals = [(z * weight).sum() for z in (ours, reference)]
    gradients = [
        torch.autograd.grad(total, leaves, allow_unused=True, retain_graph=True) if total.requires_grad else [None] * len(leaves)
        for total in totals
    ]
    for i, (a, b) in enumerate(zip(*gradients, strict=True)):
        zero = torch.zeros_like(leaves[i])
        close(zero if a is None else a, zero if b is None else b, f"gradient of leaf {i} {tuple(leaves[i].shape)}")


def softmax(z: Tensor) -> Tensor:
    """Over dim 1."""
    return z.exp() / z.exp().sum(dim=1, keepdim=True)


def ce(z: Tensor, y: Tensor) -> Tensor:
    """`y`: `B` class numbers or `B K` probabilities."""
    if y.ndim == 2:
        return -(y * softmax(z).log()).sum() / len(y)
    return -sum(softmax(z)[i, int(label)].log() for i, label in enumerate(y)) / len(y)


def kl(student: Tensor, teacher: Tensor, t: float, factor: float, epsilon: float = 0.0) -> Tensor:
    """KL(teacher || student) at temperature `t`, times `factor`; mean over the batch."""
    q, p = softmax(teacher / t) + epsilon, softmax(student / t)
    return factor * (q * (q.log() - p.log())).sum() / len(q)


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def relu(x: Tensor) -> Tensor:
    return x * (x > 0)


def linear(layer: Any, x: Tensor) -> Tensor:
    out = x @ layer.weight.T
    return out if layer.bias is None else out + layer.bias


def pooled(x: Tensor) -> Tensor:
    """Global average pooling, `B C H W` -> `B C`."""
    return x.sum(dim=(2, 3)) / (x.shape[2] * x.shape[3])


def conv1x1(conv: Any, x: Tensor) -> Tensor:
    out = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], x)
    return out if conv.bias is None else out + conv.bias[:, None, None]


def _taps(x: Tensor, stride: int) -> list[tuple[int, int, Tensor]]:
    """The nine shifts of `x`, padded by one, that a 3x3 convolution reads."""
    b, c, h, w = x.shape
    padded = torch.zeros(b, c, h + 2, w + 2, dtype=x.dtype)
    padded[:, :, 1:-1, 1:-1] = x
    return [(i, j, padded[:, :, i : i + h : stride, j : j + w : stride]) for i in range(3) for j in range(3)]


def conv3x3(conv: Any, x: Tensor, stride: int = 1) -> Tensor:
    """Padding 1, no groups, no bias."""
    return sum(torch.einsum("oc,bchw->bohw", conv.weight[:, :, i, j], tap) for i, j, tap in _taps(x, stride))


def depthwise3x3(conv: Any, x: Tensor, stride: int = 1) -> Tensor:
    """Padding 1, one filter per channel, no bias."""
    return sum(conv.weight[:, 0, i, j, None, None] * tap for i, j, tap in _taps(x, stride))


def batch_norm(bn: Any, x: Tensor, training: bool) -> Tensor:
    others, shape = [d for d in range(x.ndim) if d != 1], [1, -1] + [1] * (x.ndim - 2)
    mean, var = bn.running_mean.view(shape), bn.running_var.view(shape)
    if training:
        mean = x.mean(dim=others, keepdim=True)
        var = (x - mean).square().mean(dim=others, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * bn.weight.view(shape) + bn.bias.view(shape)


def kl_rows(student: Tensor, teacher: Tensor, t: float, groups: Callable[[int], list[list[int]]]) -> Tensor:
    """Mean over the samples of T² KL(teacher || student) of the probabilities of groups of classes, rescaled to sum 1."""
    total = torch.zeros((), dtype=student.dtype)
    for i in range(len(student)):
        p, q = (torch.stack([(z[i, g] / t).exp().sum() for g in groups(i)]) for z in (student, teacher))
        if all(groups(i)):
            p, q = p / p.sum(), q / q.sum()
            total = total + (q * (q / p).log()).sum()
    return t * t * total / len(student)


def pkd_skd(student: Tensor, teacher: Tensor, y: Tensor, t: float, reading: str) -> tuple[Tensor, Tensor]:
    """Equations 9-17 of DCKD, sample by sample."""
    classes = range(student.shape[1])
    guess = [max(classes, key=lambda k, row=row: float(row[k])) for row in student.detach()]

    def but(i: int, *excluded: int) -> list[int]:
        return [k for k in classes if k not in excluded]

    def each(classes: list[int]) -> list[list[int]]:
        return [[k] for k in classes] or [[]]

    def right(i: int) -> bool:
        return guess[i] == int(y[i])

    def label_and(i: int, others: list[int]) -> list[list[int]]:
        return [[int(y[i])], others]

    pkd, skd = {
        "A": (
            lambda i: label_and(i, but(i, int(y[i]))),
            lambda i: each(but(i, int(y[i])) if right(i) else but(i)),
        ),
        "B": (
            lambda i: each(but(i, int(y[i]), guess[i])),
            lambda i: label_and(i, but(i, int(y[i]), guess[i])),
        ),
        "C": (
            lambda i: each(but(i) if right(i) else but(i, guess[i])),
            lambda i: label_and(i, but(i, int(y[i]), guess[i])),
        ),
        "D": (lambda i: each(but(i, int(y[i]))), lambda i: label_and(i, but(i, int(y[i])))),
    }[reading]
    return kl_rows(student, teacher, t, pkd), kl_rows(student, teacher, t, skd)
