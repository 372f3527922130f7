"""A classifier taken over from a teacher, and the projector that leads a student's map to it (SimKD, DCKD).

Shapes: `B` batch, `C` channels, `H` `W` space.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UsageError


class Frozen(nn.Sequential):
    """Modules that somebody else has trained: always in evaluation mode, without gradients of their own."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(*(module if isinstance(module, nn.Sequential) else [module]))
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Frozen:
        """Stays in evaluation mode."""
        super().train(False)
        return self


def projector(in_channels: int, out_channels: int, factor: int) -> nn.Sequential:
    """Bottleneck `B in H W` -> `B out H W` with `out / factor` hidden channels (SimKD, section 3.2)."""
    hidden = max(out_channels // factor, 1)
    layers: list[nn.Module] = []
    for a, b, kernel in ((in_channels, hidden, 1), (hidden, hidden, 3), (hidden, out_channels, 1)):
        layers += [nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def shrink(own: int, wanted: int) -> nn.Module | None:
    """Average pooling of a map of height and width `own` to `wanted`; `None` where it is no larger."""
    if own <= wanted:
        return None
    return nn.AdaptiveAvgPool2d(wanted) if own % wanted else nn.AvgPool2d(own // wanted)  # a ratio fits other images too


def map_distance(student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C h w"]) -> Float[Tensor, ""]:
    """Mean squared difference of two maps; a teacher's map of another size is pooled to the student's."""
    if student.shape[2:] != teacher.shape[2:]:
        teacher = F.adaptive_avg_pool2d(teacher, (student.shape[2], student.shape[3]))
    return F.mse_loss(student, teacher)


@torch.no_grad()
def copy_tensors(source: nn.Module, target: nn.Module, teacher: str) -> None:
    """Copy every tensor of `source`, in order, to `target`, whatever their names; counters of BatchNorm stay behind.

    Raises:
        UsageError: their shapes differ. `teacher` is where `source` came from, for the message.
    """
    found, wanted = (
        [tensor for name, tensor in module.state_dict().items() if not name.endswith("num_batches_tracked")]
        for module in (source, target)
    )
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (found, wanted)]
    if shapes[0] != shapes[1]:
        raise UsageError(
            f"the classifier of the teacher {teacher} does not fit: its tensors are {shapes[0]}, the student expects {shapes[1]}",
            hint="the setting 'teacher' must name the backbone of the teacher that is given, with the same classes",
        )
    for a, b in zip(wanted, found, strict=True):
        a.copy_(b)
