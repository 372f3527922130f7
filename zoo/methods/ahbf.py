"""Adaptive Hierarchy-Branch Fusion for Online Knowledge Distillation, Gong et al., AAAI 2023,
https://doi.org/10.1609/aaai.v37i6.25937. Implements equations 3-11 and 14 and the compression mode of table 5.

Branch m of M owns the last stage(s) of the backbone, deepened by `aux`·(m-1) blocks; a chain of fusion modules makes
ever stronger teacher assistants TA(2)..TA(M) out of TA(m-1) and branch m, with TA(1) = branch 1.

Readings and deviations (methods: "paper" is the text, "code" the authors' public code, commit ecb8b2c):
1. The gate of a fusion module is Linear, BatchNorm, ReLU, softmax as in the code; the paper has no BatchNorm and no ReLU there.
2. λ1 = 4 weighs TA <- TA and λ2 = 2 weighs TA <- branch, as in the paper; the code swaps them. `official_code()` does as the code.
3. The code has a third term, branch m <- TA(m); off by default (`ta_to_branch`).
4. Gradients flow into the teacher side, as in the code; `detach_teacher` stops them. 1e-7 is added to the teacher's
   probabilities (`epsilon`), as in the code and not in the paper.
5. Extra blocks are dealt out in turn over the stages that a branch owns. This is one rule for the code's three cases: last
   stage only (CIFAR ResNets), layer3 and layer4 alternately (ImageNet), three groups in turn (MobileNetV2). A block of VGG is one
   convolution, of DenseNet one dense layer. On MobileNetV2 every branch runs its own blocks; a slip of the code runs those of
   branch 1 in all of them. The gate's variants with SE, CBAM or non-local attention are not built.
6. Compression (`compress`, the paper's "a down"): branch M is the unmodified backbone and is what `target` means; branch m
   lacks `aux`·(M-m) blocks, taken in turn from the last stages, and the chain starts at the smallest branch.

Shapes: `B` batch, `C` channels of a branch's last map, `H` `W` space, `K` classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import UsageError
from ..backbone import Backbone
from ..losses import cross_entropy, exponential_ramp, kl_divergence, sum_of
from ..method import METHODS, Method, Progress
from ..network import IMAGE, MultiBranch, Outputs


class FuseFeatures(nn.Module):
    """Equation 3: the map of the next teacher assistant, `B P H W` and `B C H W` -> `B C H W`."""

    def __init__(self, previous_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(previous_channels + channels, channels, 1)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, previous: Float[Tensor, "B P H W"], current: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return self.bn(self.conv(torch.cat([previous, current], dim=1)))


class GateLogits(nn.Module):
    """Equations 4-6: mixes the logits of the previous assistant and of the current branch by weights read off the fused map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, 2)
        self.bn = nn.BatchNorm1d(2)

    def forward(
        self,
        fused: Float[Tensor, "B C H W"],
        previous: Float[Tensor, "B K"],
        current: Float[Tensor, "B K"],
    ) -> Float[Tensor, "B K"]:
        gate_B2 = torch.softmax(torch.relu(self.bn(self.linear(self.pool(fused).flatten(1)))), dim=1)
        return gate_B2[:, 0:1] * previous + gate_B2[:, 1:2] * current


def deepened(depths: tuple[int, ...], blocks: int, steps: int) -> tuple[int, ...]:
    """`depths` with `blocks` more in `steps` turns, dealt out from the first stage on."""
    count = len(depths)
    return tuple(depth + blocks * ((steps + count - 1 - i) // count) for i, depth in enumerate(depths))


def thinned(depths: tuple[int, ...], blocks: int, steps: int) -> tuple[int, ...]:
    """`depths` with `blocks` fewer in `steps` turns, from the last stage backwards, past stages with nothing to spare.

    Raises:
        UsageError: there are not that many blocks to take away.
    """
    left, turn = list(depths), len(depths) - 1
    for _ in range(steps):
        candidates = [(turn - i) % len(left) for i in range(len(left))]
        stage = next((s for s in candidates if left[s] > blocks), None)
        if stage is None:
            raise UsageError(
                f"compression cannot take {steps} times {blocks} blocks from stages of {depths}",
                hint="lower num_branches or aux, or let a branch own more stages (branch_stages)",
            )
        left[stage] -= blocks
        turn = (stage - 1) % len(left)
    return tuple(left)


@METHODS.register("ahbf")
class AHBF(Method):
    """AHBF-OKD."""

    @dataclass(frozen=True)
    class Config:
        """Defaults of the paper.

        Attributes:
            num_branches: M.
            aux: a, blocks that each further branch adds (or, compressed, lacks).
            compress: the mode "a down".
            branch_stages: how many last stages a branch owns; 0 = the backbone's own (compressed: at least two).
            temperature: τ.
            lambda_takl: λ1, of TA(m-1) <- TA(m). lambda_btkl: λ2, of TA(m-1) <- branch m.
            ramp_epochs: length of the ramp-up ω; 0 = the whole training.
            ta_to_branch, detach_teacher, epsilon: see the deviations above.
        """

        num_branches: int = 4
        aux: int = 4
        compress: bool = False
        branch_stages: int = 0
        temperature: float = 3.0
        lambda_takl: float = 4.0
        lambda_btkl: float = 2.0
        ramp_epochs: int = 0
        ta_to_branch: bool = False
        detach_teacher: bool = False
        epsilon: float = 1e-7

        def __post_init__(self) -> None:
            if self.num_branches < 2:
                raise UsageError(
                    f"ahbf needs at least 2 branches, not {self.num_branches}", hint="for one branch use method baseline"
                )
            if self.aux < 0:
                raise UsageError(f"aux is a number of blocks, not {self.aux}", hint="compress=true makes smaller branches")

    @classmethod
    def official_code(cls) -> AHBF:
        """The losses of the authors' README and code instead of the paper's (deviations 2 and 3).

        In a recipe: `method_config: {lambda_takl: 2, lambda_btkl: 4, ta_to_branch: true}`.
        """
        return cls(cls.Config(lambda_takl=2.0, lambda_btkl=4.0, ta_to_branch=True))

    def build(self, backbone: Backbone, num_classes: int) -> MultiBranch:
        config, stages = self.config, len(backbone.depths)
        owned = config.branch_stages or max(backbone.branch_stages, 2 if config.compress else 1)
        if not 1 <= owned <= stages:
            raise UsageError(
                f"a branch cannot own {owned} stages", hint=f"branch_stages is 1 to {stages}, 0 for the backbone's own"
            )
        trunk, make_branch = backbone.split(stages - owned)
        base = backbone.depths[-owned:]

        network = MultiBranch()
        shared, channels = network.add("trunk", trunk, IMAGE), []
        for m in range(1, config.num_branches + 1):
            left = config.num_branches - m
            depths = thinned(base, config.aux, left) if config.compress else deepened(base, config.aux, m - 1)
            channels.append(backbone.out_channels(depths[-1]))
            features = network.add(f"branch{m}", make_branch(depths), shared)
            network.add_branch(features, backbone.classifier(num_classes, channels[-1]))
        network.target_branch = config.num_branches if config.compress else 1

        assistant = network.branches[0]
        features, logits = assistant.features, assistant.logits
        for m, branch in enumerate(network.branches[1:], start=2):
            previous, current = channels[m - 2 : m]
            features = network.add(f"fuse{m}", FuseFeatures(previous, current), features, branch.features)
            logits = network.add(f"gate{m}", GateLogits(current), features, logits, branch.logits)
            network.extras[f"ta{m}"] = logits
        network.fused = logits
        backbone.initialise(network)
        return network

    def losses(self, outputs: Outputs, y: Tensor, progress: Progress) -> dict[str, Tensor]:
        config = self.config
        assistants = [outputs.logits[0], *outputs.extras.values()]  # TA(1) is branch 1
        ramp = exponential_ramp(progress.epoch, config.ramp_epochs or progress.num_epochs)
        parts = {
            "ce": sum_of(cross_entropy(z, y) for z in outputs.logits),
            "ce_ta": sum_of(cross_entropy(z, y) for z in assistants[1:]),
            "takl": ramp * config.lambda_takl * sum_of(map(self._kl, assistants[:-1], assistants[1:])),
            "btkl": ramp * config.lambda_btkl * sum_of(map(self._kl, assistants[:-1], outputs.logits[1:])),
        }
        if config.ta_to_branch:
            parts["ta_to_branch"] = ramp * config.lambda_takl * sum_of(map(self._kl, outputs.logits[1:], assistants[1:]))
        return parts

    def _kl(self, student: Float[Tensor, "B K"], teacher: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
        """Equation 9, with the code's epsilon."""
        teacher = teacher.detach() if self.config.detach_teacher else teacher
        return kl_divergence(student, teacher, self.config.temperature, epsilon=self.config.epsilon)
