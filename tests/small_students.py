"""Networks of a few layers that hold what an ONNX graph may meet, and what torch says of an image.

Import it as `kdzoo.tests.small_students`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
SIZE = {"mean": MEAN, "std": STD, "height": 12, "width": 8}


def conv_bn(num_in: int, num_out: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(num_in, num_out, 3, stride, 1, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(num_out), nn.ReLU())


class Plain(nn.Module):
    """A residual block and a head; logits of magnitude 20."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv_bn(3, 16), conv_bn(16, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.body(x)
        return 20 * torch.tanh(self.head(F.adaptive_avg_pool2d(x, 1).flatten(1)))


class Ensemble(nn.Module):
    """Branches with depthwise convolutions; their logits averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.branches = nn.ModuleList(nn.Sequential(conv_bn(8, 8, 2), conv_bn(8, 8, 1, 8)) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(8, 10, bias=i > 0) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pairs = zip(self.branches, self.heads, strict=True)
        return torch.stack([head(branch(x).mean((2, 3))) for branch, head in pairs]).mean(0)


class Fused(nn.Module):
    """Concatenation, a softmax gate over branches, sigmoid attention, BatchNorm1d after Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv_bn(3, 8), conv_bn(8, 8, 2), conv_bn(8, 8, 2)
        self.gate = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        self.attention, self.head_a, self.head_b = nn.Conv2d(8, 1, 1), nn.Linear(8, 10), nn.Linear(8, 10)
        self.norm = nn.BatchNorm1d(10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b = self.a(x), self.b(x)
        s = torch.softmax(self.gate(torch.cat([a, b], 1).mean((2, 3))), 1)
        a = a * torch.sigmoid(self.attention(b))
        logits_a = self.norm(self.head_a(F.adaptive_avg_pool2d(a, 1).flatten(1)))
        logits_b = self.head_b(F.avg_pool2d(b, b.shape[2:]).view(b.shape[0], -1))
        return s[:, 0:1] * logits_a + s[:, 1:2] * logits_b


class Shuffled(nn.Module):
    """Channel shuffle, squeeze and excitation, a flattened head with a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side = conv_bn(3, 8), conv_bn(4, 4, 1, 4)
        self.squeeze, self.excite = nn.Linear(8, 4), nn.Linear(4, 8)
        self.head = nn.Sequential(nn.Linear(8 * 6, 16), nn.BatchNorm1d(16), nn.Hardswish(), nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, 1)
        x = torch.cat([left, self.side(right)], 1)
        B, C, H, W = x.shape
        x = x.view(B, 2, C // 2, H, W).transpose(1, 2).reshape(B, C, H, W)
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3)))))).view(-1, C, 1, 1)
        return self.head(F.max_pool2d(x, 4).flatten(1))


class Unexportable(nn.Module):
    """Its shape depends on the values of the image."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else x.flatten(1)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """Random weights and lived-in BatchNorm statistics."""
    torch.manual_seed(0)
    student = make().eval()
    for module in student.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
    return student


def raw_images(num: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(num).integers(0, 256, (num, 12, 8, 3), dtype=np.uint8)


def eager(student: nn.Module, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Normalisation written out in float64, the student in float32."""
    normalised = (images.astype(np.float64) / 255 - np.array(MEAN)) / np.array(STD)
    with torch.no_grad():
        return student(torch.from_numpy(normalised.transpose(0, 3, 1, 2)).float()).numpy()
