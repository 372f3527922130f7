"""Pre-activation networks (Wide ResNet, DenseNet) end with a BatchNorm and a ReLU that belong to no block.

Some papers count the two to the body, others to the classifier, so methods can cut between them.
"""

from __future__ import annotations

from torch import nn


def split_last_norm(module: nn.Module) -> tuple[nn.Module, nn.Sequential | None]:
    """`module` without its final BatchNorm and ReLU, and these two; `None` where it does not end so.

    A BatchNorm right behind a convolution belongs to the convolution, as in VGG, and stays.
    """
    layers = list(module) if isinstance(module, nn.Sequential) else []
    kinds = [type(layer) for layer in layers[-2:]]
    if kinds == [nn.BatchNorm2d, nn.ReLU] and not (len(layers) > 2 and isinstance(layers[-3], nn.Conv2d)):
        return nn.Sequential(*layers[:-2]), nn.Sequential(*layers[-2:])
    if layers:
        inner, norm = split_last_norm(layers[-1])
        return nn.Sequential(*layers[:-1], inner), norm
    return module, None
