"""What the branches of a network say of test images: one pass, from which all pictures are drawn.

Shapes: `N` images, `B` batch, `C` channels, `H` `W` space, `K` classes, `M` branches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from torch import Tensor

from ...zoo.datasets import EncodedImages, ImageSplit, LabelledImages
from ...zoo.network import MultiBranch
from ...zoo.preprocess import Preprocess
from ..augment import normalize
from ..evaluate import branch_distances


@dataclass(frozen=True)
class Observations:
    """By branch, branch 1 first.

    Attributes:
        pooled: mean over space of its last map.
        probabilities: its softmax at temperature 1.
    """

    pooled: list[Float[ndarray, "N C"]]
    probabilities: list[Float[ndarray, "N K"]]

    def predicted(self) -> list[list[int]]:
        """The class with the largest probability, by branch and image."""
        return [p_NK.argmax(axis=1).tolist() for p_NK in self.probabilities]

    def distances(self) -> Float[ndarray, "M M"]:
        """Mean L2 distance between the probabilities of every two branches."""
        stacked_NMK = torch.from_numpy(np.stack(self.probabilities, axis=1))
        return branch_distances(stacked_NMK).numpy() / len(stacked_NMK)


def in_memory(data: ImageSplit, places: Int[ndarray, " N"]) -> LabelledImages:
    """The images `places` of a split, decoded."""
    taken = data.take(places)
    return taken.decode() if isinstance(taken, EncodedImages) else taken


def normalized(images: UInt8[ndarray, "B H W 3"], preprocess: Preprocess, device: torch.device) -> Float[Tensor, "B 3 H W"]:
    """Images as the network takes them."""
    mean, std = torch.tensor(preprocess.mean, device=device), torch.tensor(preprocess.std, device=device)
    return normalize(torch.from_numpy(images).to(device), mean, std)


@torch.no_grad()
def observe(
    network: MultiBranch, data: LabelledImages, preprocess: Preprocess, device: torch.device, batch_size: int = 250
) -> Observations:
    """Run the images of `data`, at least one, through the network, which is in evaluation mode."""
    pooled: list[list[ndarray]] = [[] for _ in network.branches]
    probabilities: list[list[ndarray]] = [[] for _ in network.branches]
    for start in range(0, len(data), batch_size):
        outputs = network(normalized(data.images[start : start + batch_size], preprocess, device))
        for number, (features, logits) in enumerate(zip(outputs.features, outputs.logits, strict=True)):
            pooled[number].append(features.float().mean(dim=(2, 3)).cpu().numpy())
            probabilities[number].append(logits.float().softmax(dim=1).cpu().numpy())
    return Observations([np.concatenate(p) for p in pooled], [np.concatenate(p) for p in probabilities])
