"""AutoAugment: Learning Augmentation Policies from Data, Cubuk et al., 2019, https://arxiv.org/abs/1805.09501: the policy that
the paper found on CIFAR-10, for whole batches, where the images live. No Python per sample.

Sub-policies, magnitudes and operations are torchvision's own (private members of its `AutoAugment`; a test holds this file
against its public functions, image by image):
1. an operation that moves pixels has a fixed source for every pixel: torchvision moves a picture of pixel numbers;
2. one that looks at single values has a fixed result for every value: torchvision changes a picture of all values;
3. one that looks at the whole image is called for all images of the batch that take it at the same magnitude and sign.

Deviations:
1. Moved pixels come from the nearest place, which is torchvision's default; the code of Self-D shears with bicubic interpolation.

Shapes: `B` batch, `M` members of a group, `H` `W` space, `P` = HW, `V` = 256 values, `S` = 25 sub-policies; `T` the distinct pairs
of operation and signed magnitude.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int, UInt8
from torch import Generator, Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import AutoAugment, AutoAugmentPolicy

MOVING = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
POINTWISE = ("Brightness", "Posterize", "Solarize", "Invert")
NUM_MAGNITUDES = 10


class Operation(NamedTuple):
    """A name of torchvision's augmentation space, and the magnitude with its sign."""

    name: str
    magnitude: float

    def __call__(self, images_BCHW: Tensor, fill: float = 0.0) -> Tensor:
        """All images after this operation, by torchvision."""
        transform = AutoAugment(fill=fill)
        changed: Tensor = transform._apply_image_or_video_transform(
            images_BCHW, self.name, self.magnitude, transform.interpolation, transform._fill
        )
        return changed


class CifarPolicy:
    """25 sub-policies of two operations, for images of one size on one device. `fill`: value of the pixels that move in."""

    def __init__(self, height: int, width: int, fill: int, device: torch.device) -> None:
        self.operations = [Operation("Identity", 0.0)]
        transform = AutoAugment(AutoAugmentPolicy.CIFAR10)
        probability, place = [], []
        for sub_policy in transform._policies:
            for name, chance, index in sub_policy:
                magnitudes, signed = transform._AUGMENTATION_SPACE[name]
                values = magnitudes(NUM_MAGNITUDES, height, width)
                magnitude = 0.0 if values is None else float(values[index])
                probability.append(chance)
                place.append([self._place(name, magnitude), self._place(name, -magnitude if signed else magnitude)])
        self.probability_S2 = torch.tensor(probability).view(-1, 2)
        self.place_S22 = torch.tensor(place).view(-1, 2, 2)

        number_11HW = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width)
        moved = [op(number_11HW, fill=-1.0) if op.name in MOVING else number_11HW for op in self.operations]
        source_TP = torch.cat(moved).flatten(1).long()
        self.source_TP = source_TP.where(source_TP >= 0, torch.tensor(height * width)).to(device)
        value_13VV = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
        table = [op(value_13VV) if op.name in POINTWISE else value_13VV for op in self.operations]
        self.table_TV = torch.cat(table)[:, 0].flatten(1).to(device)
        self.fill = fill
        first = {kind: next(i for i, op in enumerate(self.operations) if op.name in kind) for kind in (MOVING, POINTWISE)}
        kinds = [next((kind for kind in first if op.name in kind), None) for op in self.operations]
        self.group_T = torch.tensor([place if kind is None else first[kind] for place, kind in enumerate(kinds)])

    def _place(self, name: str, magnitude: float) -> int:
        operation = Operation(name, magnitude)
        if operation not in self.operations:
            self.operations.append(operation)
        return self.operations.index(operation)

    def draw(self, batch: int, generator: Generator) -> Int[Tensor, "2 B"]:
        """The first and the second operation of every image, as places in `operations`, drawn on the host."""
        policy_B = torch.randint(len(self.place_S22), (batch,), generator=generator)
        happens_2B = torch.rand(2, batch, generator=generator) < self.probability_S2[policy_B].T
        sign_2B1 = torch.randint(2, (2, batch, 1), generator=generator)
        place_2B = self.place_S22[policy_B].transpose(0, 1).gather(2, sign_2B1).squeeze(2)
        return place_2B * happens_2B

    def apply(self, images_B3HW: UInt8[Tensor, "B 3 H W"], place_B: Int[Tensor, " B"]) -> None:
        """Put every image through the operation at its place in `operations`, in place."""
        device = images_B3HW.device
        group_B = self.group_T[place_B]
        for group in group_B.unique().tolist():
            operation, members_M = self.operations[group], (group_B == group).nonzero().squeeze(1)
            place_M, members_M = (t.to(device, non_blocking=True) for t in (place_B[members_M], members_M))
            images_M3HW = images_B3HW[members_M]
            if operation.name in MOVING:
                padded_M3Q = F.pad(images_M3HW.flatten(2), (0, 1), value=self.fill)
                images_M3HW = padded_M3Q.gather(2, self.source_TP[place_M][:, None].expand(-1, 3, -1)).view_as(images_M3HW)
            elif operation.name in POINTWISE:
                images_M3HW = self.table_TV[place_M].gather(1, images_M3HW.flatten(1).long()).view_as(images_M3HW)
            else:
                images_M3HW = operation(images_M3HW)
            images_B3HW[members_M] = images_M3HW

    def through(self, images_BHW3: UInt8[Tensor, "B H W 3"], places_2B: Int[Tensor, "2 B"]) -> UInt8[Tensor, "B H W 3"]:
        """Every image after the two operations at its places."""
        images_B3HW = images_BHW3.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)
        for place_B in places_2B:
            self.apply(images_B3HW, place_B)
        return images_B3HW.permute(0, 2, 3, 1).contiguous()

    def __call__(self, images_BHW3: UInt8[Tensor, "B H W 3"], generator: Generator) -> UInt8[Tensor, "B H W 3"]:
        """Every image after a sub-policy of its own."""
        return self.through(images_BHW3, self.draw(len(images_BHW3), generator))
