"""Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, Selvaraju et al., ICCV 2017,
https://doi.org/10.1109/ICCV.2017.74. Equations 1 and 2, for every branch at the last map, which its classifier reads.

Readings:
1. The gradient is that of the logit of the class which the branch itself predicts, right or wrong.
2. A fused classifier has a map of its own where its node reads exactly one map; a gate that mixes the logits of branches has none.

Shapes: `B` batch, `C` channels, `H` `W` space (of a map `h` `w`), `K` classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ...zoo.network import IMAGE, MultiBranch


def grad_cam(map_BChw: Float[Tensor, "B C h w"], gradient_BChw: Float[Tensor, "B C h w"]) -> Float[Tensor, "B h w"]:
    """ReLU of the sum of the channels, each weighted by the mean of its gradient over space."""
    weights_BC11 = gradient_BChw.mean(dim=(2, 3), keepdim=True)
    return torch.relu((weights_BC11 * map_BChw).sum(dim=1))


def heat(cam_Bhw: Float[Tensor, "B h w"], height: int, width: int) -> Float[Tensor, "B H W"]:
    """Stretched to `height` x `width` (bilinear) and divided by the largest value of each image; all zero where nothing speaks for
    the class."""
    stretched_BHW = F.interpolate(cam_Bhw[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
    largest_B11 = stretched_BHW.amax(dim=(1, 2), keepdim=True)
    return stretched_BHW / largest_B11.clamp_min(torch.finfo(stretched_BHW.dtype).tiny)


@dataclass(frozen=True)
class Column:
    """One classifier that has a map: its name on the page and its nodes."""

    name: str
    features: str
    logits: str


def columns(network: MultiBranch, names: Sequence[str]) -> list[Column]:
    """Every branch, under its name, and the fused classifier where it has a map of its own."""
    branches = zip(names, network.branches, strict=True)
    found = [Column(f"branch {name}", branch.features, branch.logits) for name, branch in branches]
    fused = network.fused
    if fused is not None and fused not in {column.logits for column in found}:
        inputs = network.inputs[fused]
        if len(inputs) == 1 and inputs[0] != IMAGE:
            found.append(Column("fused", inputs[0], fused))
    return found


@dataclass(frozen=True)
class Explanation:
    """What one classifier says of a few images, and where it looks."""

    name: str
    cam: Float[Tensor, "B h w"]
    predicted: list[int]
    confidence: list[float]


def explain(network: MultiBranch, images: Float[Tensor, "B 3 H W"], wanted: Sequence[Column]) -> list[Explanation]:
    """Grad-CAM of the predicted class for every column that has a map; the network is in evaluation mode and stays as it is."""
    with torch.enable_grad():
        # Through the image, so that the maps of frozen parts have a gradient, too.
        values = network.evaluate(images.detach().requires_grad_())
        found = []
        for column in wanted:
            map_BChw, logits_BK = values[column.features], values[column.logits]
            if map_BChw.ndim != 4:
                continue
            top_B = logits_BK.argmax(dim=1)
            score = logits_BK.gather(1, top_B[:, None]).sum()
            (gradient_BChw,) = torch.autograd.grad(score, map_BChw, retain_graph=True)
            sure_B = logits_BK.float().softmax(dim=1).gather(1, top_B[:, None])[:, 0]
            cam_Bhw = grad_cam(map_BChw.detach().float(), gradient_BChw.float())
            found.append(Explanation(column.name, cam_Bhw.cpu(), top_B.tolist(), sure_B.tolist()))
    return found


def choose_images(predicted: Sequence[Sequence[int]], labels: Sequence[int], count: int) -> list[int]:
    """Images to explain, by rule and not by eye: in the order of the split, in turn one that all branches get right, one that some
    get right, one that none gets right, each kind as long as there are any. `predicted`: of every branch, by image."""
    kinds: dict[str, list[int]] = {"all": [], "some": [], "none": []}
    for image, label in enumerate(labels):
        right = sum(branch[image] == label for branch in predicted)
        kinds["all" if right == len(predicted) else "some" if right else "none"].append(image)
    chosen: list[int] = []
    while len(chosen) < count and any(kinds.values()):
        for waiting in kinds.values():
            if waiting and len(chosen) < count:
                chosen.append(waiting.pop(0))
    return sorted(chosen)
