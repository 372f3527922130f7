"""Knowledge Distillation with the Reused Teacher Classifier (SimKD), Chen et al., CVPR 2022, https://arxiv.org/abs/2203.14001.
Implements equation 3 and figure 2: the student's body, a projector, and the teacher's classifier, frozen.

Readings and deviations:
1. The student's map is pooled in front of the projector where it is larger than the teacher's; a larger map of the teacher is
   pooled in the loss. As in the authors' code.
2. Cross entropy and KL divergence of the logits are off, as in the paper (`ce_weight`, `kl_weight`).
3. A student's neck (the 1x1 convolution to 1280 or 1024 channels of MobileNetV2 and ShuffleNetV2) is left out: the projector reads
   the map in front of it, as in the authors' code. A teacher's neck stays with the teacher: maps are compared behind it.
4. Pre-activation backbones (Wide ResNet) end with a BatchNorm and a ReLU. They belong to the body, so that maps are compared
   behind them. With `before_last_norm` the student has none and the teacher's, frozen, belong to the reused classifier; maps are
   still compared behind them, since a projector that ends with a ReLU cannot meet a map with negative values.

Shapes: `B` batch, `K` classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ...errors import UsageError
from ..backbone import BACKBONES, Backbone
from ..branches import stage_maps
from ..losses import cross_entropy, kl_divergence
from ..method import METHODS, Method, Progress, require_teacher
from ..network import IMAGE, MultiBranch, Outputs
from ..pre_activation import split_last_norm
from ..projector import Frozen, copy_tensors, map_distance, projector, shrink
from ..teacher import Teacher


@METHODS.register("simkd")
class SimKD(Method):
    """SimKD."""

    @dataclass(frozen=True)
    class Config:
        """Defaults of the paper.

        Attributes:
            teacher: backbone of the teacher.
            factor: channels of the teacher's map over the hidden channels of the projector.
            before_last_norm: see reading 4.
            feature_weight, ce_weight, kl_weight: of the three losses. temperature: of the KL divergence.
        """

        teacher: str = ""
        factor: int = 2
        before_last_norm: bool = False
        feature_weight: float = 1.0
        ce_weight: float = 0.0
        kl_weight: float = 0.0
        temperature: float = 4.0

    def teachers(self, backbone: str) -> tuple[str, ...]:
        return require_teacher("simkd", self.config.teacher)

    def build(self, backbone: Backbone, num_classes: int) -> MultiBranch:
        config = self.config
        teacher = BACKBONES.get(*self.teachers(""))()
        teacher.image_size = backbone.image_size  # it sees the student's images
        (channels, own), (wide, wanted, _) = stage_maps(backbone)[-1], teacher.map_shape()
        body: nn.Module = backbone.split(len(backbone.depths))[0]
        last_norm = None
        if config.before_last_norm:
            (body, own_norm), last_norm = split_last_norm(body), split_last_norm(teacher.body())[1]
            if own_norm is None and last_norm is None:
                raise UsageError("before_last_norm=true, but neither network ends with a BatchNorm of its own", hint="leave it out")

        network = MultiBranch()
        features = network.add("trunk", body, IMAGE)
        if (pool := shrink(own, wanted)) is not None:
            features = network.add("pool", pool, features)
        features = network.add("projector", projector(channels, wide, config.factor), features)
        if last_norm is not None:
            features = network.add("norm", Frozen(last_norm), features)
        network.add_branch(features, Frozen(teacher.classifier(num_classes)))
        backbone.initialise(network)
        return network

    def adopt(self, network: MultiBranch, teachers: Sequence[Teacher]) -> None:
        (teacher,) = teachers
        copy_tensors(teacher.classifier(), network[network.branches[0].logits], teacher.name)
        if "norm" in network:
            (features,) = teacher.student.inputs[teacher.student.outputs[0]]
            last_norm = split_last_norm(teacher.student[features])[1]
            if last_norm is None:
                raise UsageError(
                    f"the map of the teacher {teacher.name} has no last BatchNorm of its own", hint="set before_last_norm=false"
                )
            copy_tensors(last_norm, network["norm"], teacher.name)

    def losses(self, outputs: Outputs, y: Tensor, progress: Progress) -> dict[str, Tensor]:
        config, teacher, logits = self.config, outputs.teachers[0], outputs.logits[0]
        parts = {"feature": config.feature_weight * map_distance(outputs.features[0], teacher.features[0])}
        if config.ce_weight:
            parts["ce"] = config.ce_weight * cross_entropy(logits, y)
        if config.kl_weight:
            parts["kl"] = config.kl_weight * kl_divergence(logits, teacher.logits[0], config.temperature)
        return parts
