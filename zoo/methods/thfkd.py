"""Two-stage optimization based on heterogeneous branch fusion for knowledge distillation (THFKD), Li et al., PLoS ONE, 2025,
https://doi.org/10.1371/journal.pone.0326711. Implements equations 6-14 and the ablations of auxiliary blocks and losses.

Every branch b of B owns a copy of the last stage(s) of the backbone, at normal depth, and but for branch 1 an auxiliary block whose
hidden width grows with b. Progressive feature fusion (PFF) folds the maps of branches 1..B into one. Teachers of every branch are
a pre-trained network, the fused classifier and the mean of all branches.

Readings and deviations ("code": the authors', which lacks the file of PFF; names in brackets are fields of `Config`):
1. PFF is an attentional fusion with a local and a global path, its second factor 1 - W and its result doubled
   (`pff_complement`, `pff_scale`); the paper leaves both open. F~(1) is the map of branch 1.
2. Gradients flow into the fused and the mean logits as teachers, and only so PFF learns; there is no cross entropy on the fused
   logits, as in the code. `detach` stops these gradients and adds that cross entropy, without which PFF would never learn.
3. The code also builds a classifier behind every PFF but the last, which no loss reads. Left out.
4. Temperature 3 and a ramp of 120 epochs as in the paper; the code's defaults are 5 and 80 (`official_code`). Before the ramp
   starts (`ramp_start`) the weight is 1, as in the code (`early_weight`). `alpha` weighs all distillation.
5. Where a neck stands before the classifier (MobileNetV2), all branches share it, the auxiliary block reads the map before it and
   PFF the map behind it, and the auxiliary block is half as wide (`aux_width`), all as in the code; ShuffleNetV2, whose file is
   not public, is treated alike. The fused classifier is of the backbone's own kind (VGG-16: three linear layers).
6. Pre-activation backbones (Wide ResNet): auxiliary blocks stand before the last BatchNorm and ReLU, of which each branch has its
   own. In the code only the deepest branch has them (`bare_branches`).
7. Any number of branches from 2 on; the code can do 4. With an ImageNet stem a branch owns two stages, as in AHBF's code.
8. Which three branches make up THFKD-E the paper does not say: target `1+2+3`, or any other three.

Shapes: `B` batch, `C` channels, `H` `W` space, `K` classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import UsageError
from ..backbone import Backbone
from ..branches import require_branches, shared_stages
from ..losses import cross_entropy, exponential_ramp, kl_divergence, sum_of
from ..method import METHODS, Method, Progress, require_teacher
from ..network import IMAGE, MultiBranch, Outputs, mean_logits
from ..pre_activation import split_last_norm


class AuxiliaryBlock(nn.Module):
    """Equation 6: a residual bottleneck of any hidden width, `B C H W` -> `B C H W`."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 3, 1, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return torch.relu(x + self.body(x))


class ProgressiveFusion(nn.Module):
    """Equations 7 and 8: folds the map of a branch into what was fused before, two `B C H W` -> `B C H W`."""

    def __init__(self, channels: int, reduction: int, gate: float, scale: float, complement: bool) -> None:
        super().__init__()
        self.of_current, self.of_previous, self.complement = scale * gate, scale * (1.0 - gate), complement
        self.local_path = self.squeeze(channels, reduction)
        self.global_path = nn.Sequential(nn.AdaptiveAvgPool2d(1), *self.squeeze(channels, reduction))

    @staticmethod
    def squeeze(channels: int, reduction: int) -> nn.Sequential:
        narrow = max(channels // reduction, 1)
        return nn.Sequential(
            nn.Conv2d(channels, narrow, 1, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(inplace=True),
            nn.Conv2d(narrow, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, current: Float[Tensor, "B C H W"], previous: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        both = current + previous
        weight = torch.sigmoid(self.local_path(both) + self.global_path(both))
        other = 1.0 - weight if self.complement else weight
        return self.of_current * weight * current + self.of_previous * other * previous


@METHODS.register("thfkd")
class THFKD(Method):
    """THFKD."""

    @dataclass(frozen=True)
    class Config:
        """Defaults of the paper.

        Attributes:
            teacher: backbone of the pre-trained teacher.
            num_branches: B.
            branch_stages: how many last stages a branch owns; 0 = the backbone's own number.
            num_aux: NA, auxiliary blocks of each branch after the first.
            aux_width: CA of branch 2 over the channels of the map; 0 = 1, or 1/2 where the backbone has a neck.
            aux_growth: CA grows as b - 1; else it is the same in all branches.
            pff_reduction, pff_gate: r and g. pff_scale, pff_complement, bare_branches, detach: see the readings above.
            temperature: τ. alpha: weight of all distillation. epsilon: added to the probabilities of a teacher.
            ramp_epochs, ramp_start: E and a. early_weight: weight before a.
            use_teacher, use_fused, use_ensemble: the three teachers (L_tg, L_fl, L_el).
        """

        teacher: str = ""
        num_branches: int = 4
        branch_stages: int = 0
        num_aux: int = 1
        aux_width: float = 0.0
        aux_growth: bool = True
        pff_reduction: int = 4
        pff_gate: float = 0.5
        pff_scale: float = 2.0
        pff_complement: bool = True
        bare_branches: bool = False
        temperature: float = 3.0
        alpha: float = 1.0
        epsilon: float = 1e-7
        ramp_epochs: int = 120
        ramp_start: int = 0
        early_weight: float = 1.0
        detach: bool = False
        use_teacher: bool = True
        use_fused: bool = True
        use_ensemble: bool = True

        def __post_init__(self) -> None:
            require_branches("thfkd", self.num_branches, 2)
            limits = {
                "num_aux": (self.num_aux >= 0, "a number of blocks from 0 on"),
                "aux_width": (self.aux_width >= 0, "a share of the channels, 0 for the usual one"),
                "pff_reduction": (self.pff_reduction >= 1, "at least 1"),
                "pff_gate": (0 <= self.pff_gate <= 1, "0 to 1"),
                "ramp_epochs": (self.ramp_epochs >= 1, "at least 1"),
                "ramp_start": (self.ramp_start >= 0, "an epoch from 0 on"),
            }
            for name, (fits, takes) in limits.items():
                if not fits:
                    raise UsageError(f"{name} cannot be {getattr(self, name)}", hint=f"it takes {takes}")

    @classmethod
    def official_code(cls, teacher: str) -> THFKD:
        """The authors' code instead of the paper (readings 4 and 6)."""
        return cls(cls.Config(teacher=teacher, temperature=5.0, ramp_epochs=80, bare_branches=True))

    def teachers(self, backbone: str) -> tuple[str, ...]:
        return require_teacher("thfkd", self.config.teacher) if self.config.use_teacher else ()

    def build(self, backbone: Backbone, num_classes: int) -> MultiBranch:
        config, last = self.config, len(backbone.depths) - 1
        num_shared = shared_stages(backbone, config.branch_stages)
        channels = backbone.channels(last, backbone.depths[last])
        neck = backbone.neck(channels)
        width = channels * (config.aux_width or (1.0 if neck is None else 0.5))

        network = MultiBranch()
        shared = network.add("trunk", backbone.split(num_shared)[0], IMAGE)
        if neck is not None:
            network.hold("neck", neck)
        for b in range(1, config.num_branches + 1):
            stages = (backbone.stage(i, backbone.depths[i]) for i in range(num_shared, last + 1))
            body, norm = split_last_norm(nn.Sequential(*stages))
            features = network.add(f"branch{b}", body, shared)
            if b > 1 and config.num_aux:
                hidden = max(int(width * (b - 1 if config.aux_growth else 1)), 1)
                blocks = (AuxiliaryBlock(channels, hidden) for _ in range(config.num_aux))
                features = network.add(f"aux{b}", nn.Sequential(*blocks), features)
            if norm is not None and not (config.bare_branches and b < config.num_branches):
                features = network.add(f"norm{b}", norm, features)
            if neck is not None:
                features = network.add_call(f"neck{b}", "neck", features)
            network.add_branch(features, backbone.classifier(num_classes))
        if config.use_fused:
            network.fused = self._fuse(network, backbone, num_classes)
        backbone.initialise(network)
        return network

    def _fuse(self, network: MultiBranch, backbone: Backbone, num_classes: int) -> str:
        """Append the chain of PFFs and the fused classifier; gives back the node of its logits."""
        config, fused = self.config, network.branches[0].features
        for b, branch in enumerate(network.branches[1:], start=2):
            pff = ProgressiveFusion(
                backbone.out_channels(), config.pff_reduction, config.pff_gate, config.pff_scale, config.pff_complement
            )
            fused = network.add(f"fuse{b}", pff, branch.features, fused)
        return network.add("classifier_fused", backbone.classifier(num_classes), fused)

    def losses(self, outputs: Outputs, y: Tensor, progress: Progress) -> dict[str, Tensor]:
        config, parts = self.config, {"ce": sum_of(cross_entropy(z, y) for z in outputs.logits)}
        epoch = progress.epoch - config.ramp_start
        ramp = config.early_weight if epoch < 0 else exponential_ramp(epoch, config.ramp_epochs)
        if config.use_teacher:
            parts["teacher"] = ramp * config.alpha * self._guide(outputs.logits, outputs.teachers[0].logits[0])
        if config.use_fused:
            assert outputs.fused is not None
            parts["fused"] = ramp * config.alpha * self._guide(outputs.logits, outputs.fused)
            if config.detach:
                parts["ce_fused"] = cross_entropy(outputs.fused, y)
        if config.use_ensemble:
            parts["ensemble"] = ramp * config.alpha * self._guide(outputs.logits, mean_logits(outputs.logits))
        return parts

    def _guide(self, students: list[Float[Tensor, "B K"]], teacher: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
        """Equations 9-12: one teacher of all branches."""
        config = self.config
        teacher = teacher.detach() if config.detach else teacher
        return sum_of(kl_divergence(z, teacher, config.temperature, epsilon=config.epsilon) for z in students)
