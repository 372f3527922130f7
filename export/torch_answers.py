"""What torch says of images, in float32: the reference of all parity. One pass over a whole network answers for all its targets.

Torch is imported only where it is asked. Shapes: `N` images, `H` `W` space, `C` channels, `K` classes, `J` exits.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..zoo.preprocess import Preprocess
from .cascade import EXIT
from .parity import in_batches, run_outputs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..zoo.datasets import ImageSplit
    from ..zoo.network import Graph
    from ..zoo.student import Student

    NodeLogits = dict[str, NDArray[np.float32]]  # by node of the network, `N K`

BATCH = 100  # small enough for the caches of a processor


def node_logits(network: Graph, nodes: Iterable[str], preprocess: Preprocess, images: NDArray[np.uint8] | ImageSplit) -> NodeLogits:
    """The values of the `nodes` of a network, or of a student, that give logits, for raw images `N H W C`."""
    import torch
    from torch import Tensor, nn

    from .deployed import Deployed

    names = tuple(dict.fromkeys(nodes))

    class Nodes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # A copy, because on a processor filters in the order of the channels take half the time.
            self.network = copy.deepcopy(network).to(memory_format=torch.channels_last)

        def forward(self, image: Tensor) -> tuple[Tensor, ...]:
            values = self.network.evaluate(image)
            return tuple(values[name] for name in names)

    deployed = Deployed(Nodes(), mean=preprocess.mean, std=preprocess.std, input="uint8").eval()

    def run(chunk: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        return {name: z.numpy() for name, z in zip(names, deployed(torch.from_numpy(chunk)), strict=True)}

    with torch.inference_mode():
        return run_outputs(run, in_batches(images, BATCH))


def student_outputs(student: Student, values: NodeLogits, thresholds: Sequence[float] | None = None) -> dict[str, NDArray[Any]]:
    """What a student gives, out of the logits of its nodes: `logits` `N K` and, of one with several outputs, those of each; or,
    with the `thresholds` of a cascade, the answer of the exit of every image and the exits, from 1."""
    import numpy as np
    import torch

    from ..zoo.student import Several
    from .thresholds import confidence_of, exits_of, so_far

    if not isinstance(student, Several):
        return {"logits": student.combine({name: torch.from_numpy(values[name]) for name in student.outputs}).numpy()}
    outputs = [values[name] for name in student.outputs]
    if thresholds is None:
        return dict(zip(student.output_names(), outputs, strict=True))
    logits_JNK = np.stack(so_far(outputs))
    leave = exits_of(np.stack([confidence_of(z) for z in logits_JNK], axis=1), tuple(thresholds))
    return {"logits": logits_JNK[leave, np.arange(leave.size)], EXIT: leave + 1}
