"""A folder with the whole trained network: `model.safetensors`, `manifest.json` and, while training, what resuming needs.

Torch-free at import: listing and inspecting a checkpoint reads JSON only.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import IntegrityError, UsageError
from .files import new_folder, read_json, sha256, standing, write_bytes, write_json
from .manifest import MANIFEST, Manifest

if TYPE_CHECKING:
    from torch import Tensor

    from .datasets import ImageSplit, LabelledImages
    from .method import Method
    from .network import MultiBranch
    from .target import Target

WEIGHTS = "model.safetensors"
SAMPLES = "samples.npz"
NUM_SAMPLES = 64
TRAINING_TENSORS, TRAINING_STATE = "training.safetensors", "training.json"


@dataclass(frozen=True)
class TrainingState:
    """What resuming needs besides the weights: optimizer buffers and random states as tensors, positions as plain data."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, its manifest read and nothing else yet.

    Attributes:
        origin: the entry, or the pinned reference, that it came by: where others find it, too.
    """

    folder: Path
    manifest: Manifest
    origin: str | None = None

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """The checkpoint in `folder`, or in `folder/checkpoint` where `folder` is a run."""
        for place in map(standing, (folder / "checkpoint", folder)):
            if (place / MANIFEST).is_file():
                return cls(place, Manifest.read(place))
        raise UsageError(f"{folder} holds no checkpoint: there is no {MANIFEST}", hint="give a run folder or a checkpoint folder")

    def verify(self) -> None:
        """Raises `IntegrityError` unless every file is there and is the one that the manifest describes."""
        for name, expected in self.manifest.files.items():
            check_file(self.folder / name, expected)

    def method(self) -> Method:
        """The configured method that built the network."""
        from .method import METHODS

        return METHODS.get(self.manifest.method).from_mapping(self.manifest.method_config)

    def network(self) -> MultiBranch:
        """The whole network in float32, in evaluation mode; raises `IntegrityError` where the weights are not its own."""
        check_file(self.folder / WEIGHTS, self.manifest.files.get(WEIGHTS))
        network = self._shapes()
        load_weights(network, self.folder / WEIGHTS)
        return network.eval()

    def targets(self) -> tuple[str, ...]:
        """What can be cut out of the network."""
        return self._shapes().targets()

    def require(self, target: Target) -> None:
        """Raises `UnknownName` where the network has no such target."""
        from .student import logit_nodes

        logit_nodes(self._shapes(), target)

    def _shapes(self) -> MultiBranch:
        """The network without weights, on the meta device."""
        import torch

        from .backbone import BACKBONES

        with torch.device("meta"):
            return self.method().build(BACKBONES.get(self.manifest.backbone)(), len(self.manifest.classes))

    def samples(self) -> LabelledImages:
        """The few test images that travel with the weights, so that a student can be compared with torch anywhere."""
        import numpy as np

        from .datasets import LabelledImages

        check_file(self.folder / SAMPLES, self.manifest.files.get(SAMPLES))
        with np.load(self.folder / SAMPLES, allow_pickle=False) as arrays:
            return LabelledImages(arrays["images"], arrays["labels"], self.manifest.classes, self.manifest.dataset)

    def training_state(self) -> TrainingState:
        """Raises `UsageError` where the checkpoint was saved without one."""
        from safetensors.torch import load_file

        if not (self.folder / TRAINING_STATE).is_file():
            raise UsageError(f"{self.folder} holds no training state, so it cannot be resumed", hint="give the folder of a run")
        self.verify()
        return TrainingState(load_file(self.folder / TRAINING_TENSORS), read_json(self.folder / TRAINING_STATE))


def save_checkpoint(
    folder: Path, network: MultiBranch, manifest: Manifest, samples: ImageSplit, training: TrainingState | None = None
) -> Checkpoint:
    """Write a checkpoint; what stood in `folder` is kept until the new one is whole.

    `manifest.weights_dtype` is how matrices and filters are stored.

    The first `NUM_SAMPLES` images of `samples`, the test split, go with it.
    """
    import numpy as np
    import torch
    from safetensors.torch import save

    dtype = {"float32": torch.float32, "float16": torch.float16}[manifest.weights_dtype]
    with new_folder(folder) as part:
        weights = {
            # Scales and statistics stay in float32: they are few, and a variance may not fit into half precision.
            name: tensor.detach().to(device="cpu", dtype=dtype if tensor.ndim >= 2 else tensor.dtype).contiguous()
            for name, tensor in network.state_dict().items()
        }
        write_bytes(part / WEIGHTS, save(weights))
        few = samples.head(NUM_SAMPLES)
        np.savez_compressed(part / SAMPLES, images=few.images, labels=few.labels)
        if training is not None:
            tensors = {n: t.detach().cpu().contiguous() for n, t in training.tensors.items()}
            write_bytes(part / TRAINING_TENSORS, save(tensors))
            write_json(part / TRAINING_STATE, training.values)
        manifest = replace(manifest, files=describe_files(part))
        manifest.write(part)
    return Checkpoint(folder, manifest)


def load_weights(module: Any, path: Path) -> None:
    """Fill `module` (which may be on the meta device) with the float32 form of the tensors in `path`, every one of them."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    try:
        # Copied: a tensor in a file starts at any byte, and sums over memory that is not aligned differ in the last bit.
        loaded = load_file(path).items()
        weights = OrderedDict((n, t.to(torch.float32 if t.is_floating_point() else t.dtype, copy=True)) for n, t in loaded)
        # Without the versions of the layers BatchNorm takes the file for an old one and adds the counters that a student lacks.
        weights._metadata = module.state_dict()._metadata  # type: ignore[attr-defined]
        module.load_state_dict(weights, strict=True, assign=True)
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise IntegrityError(f"{path} does not hold the weights of this network: {reason}", hint="copy the folder again") from None
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trained)


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """sha256 and bytes of every file below `folder`, the manifest excepted, by path relative to it."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {p.relative_to(folder).as_posix(): {"sha256": sha256(p), "bytes": p.stat().st_size} for p in paths}


def check_file(path: Path, expected: dict[str, Any] | None) -> None:
    """Raises `IntegrityError` unless `path` has the size and the sha256 of its description."""
    if expected is None or not path.is_file():
        where = "" if expected else " in its manifest"
        raise IntegrityError(f"{path} is missing{where}", hint="the folder is incomplete: copy it again")
    if path.stat().st_size != expected["bytes"]:
        raise IntegrityError(
            f"{path} has {path.stat().st_size} bytes, its manifest says {expected['bytes']}",
            hint="it is not whole, or was changed: copy it again",
        )
    if sha256(path) != expected["sha256"]:
        raise IntegrityError(f"{path} is not the file that its manifest describes (sha256)", hint="it is corrupt: copy it again")
