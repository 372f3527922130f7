"""The three ways in which methods make branches out of backbones: low layers shared, whole peers, exits after stages.

Node names become names of tensors, so they are the same in every method: `trunk`, `branch1`..; `peer1`..; `stem`, `stage1`..

Shapes: `B` batch, `C` channels, `H` `W` space.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..errors import UsageError
from .backbone import BACKBONES, Backbone
from .network import IMAGE, MultiBranch


def require_branches(method: str, given: int, least: int) -> None:
    """Raises `UsageError` where a method is given too few branches to work at all."""
    if given < least:
        raise UsageError(f"{method} needs at least {least} branches, not {given}", hint="for one branch use method baseline")


def shared_stages(backbone: Backbone, branch_stages: int) -> int:
    """How many stages the branches share if each owns the last `branch_stages` (0 = as many as the backbone says).

    Raises:
        UsageError: the backbone has no such number of stages.
    """
    stages, owned = len(backbone.depths), branch_stages or backbone.branch_stages
    if not 1 <= owned <= stages:
        raise UsageError(f"a branch cannot own {owned} stages", hint=f"branch_stages is 1 to {stages}, 0 for the backbone's own")
    return stages - owned


def add_branches(
    network: MultiBranch,
    backbone: Backbone,
    num_classes: int,
    num_branches: int,
    branch_stages: int,
    bridge: nn.Module | None = None,
) -> str:
    """Branches that share the low stages; gives back the node of the shared map. `bridge` stands between it and the branches."""
    shared = shared_stages(backbone, branch_stages)
    trunk, make_branch = backbone.split(shared)
    node = network.add("trunk", trunk, IMAGE)
    if bridge is not None:
        node = network.add("bridge", bridge, node)
    for m in range(1, num_branches + 1):
        features = network.add(f"branch{m}", make_branch(backbone.depths[shared:]), node)
        network.add_branch(features, backbone.classifier(num_classes))
    return node


def peer_backbones(backbone: Backbone, peers: tuple[str, ...]) -> list[Backbone]:
    """The backbones of all peers: the recipe's own, then the named ones; where none is named, one more of the same.

    Raises:
        UnknownName: there is no such backbone.
        UsageError: the backbones are made for images of different sizes.
    """
    found = [backbone, *(BACKBONES.get(name)() for name in peers)] if peers else [backbone, backbone]
    sizes = [peer.image_size for peer in found]
    if len(set(sizes)) > 1:
        raise UsageError(
            f"peers see the same images, and these are made for {', '.join(map(str, sizes))} pixels",
            hint="name peers with the same stem as the backbone of the recipe",
        )
    return found


def add_peers(network: MultiBranch, backbones: list[Backbone], num_classes: int) -> None:
    """One branch per backbone that shares nothing with the others, initialised as its own paper says."""
    for k, backbone in enumerate(backbones, start=1):
        branch = network.add_branch(network.add(f"peer{k}", backbone.body(), IMAGE), backbone.classifier(num_classes))
        backbone.initialise(nn.ModuleList([network[branch.features], network[branch.logits]]))


@dataclass(frozen=True)
class Tap:
    """A map of the backbone: its node, its channels, and its height for an image of the backbone's own size."""

    node: str
    channels: int
    height: int


def add_stages(network: MultiBranch, backbone: Backbone) -> list[Tap]:
    """The backbone stage by stage, without its neck: the maps after which exits hang, then the last map."""
    node, maps = network.add("stem", backbone.stem(), IMAGE), stage_maps(backbone)
    taps, last = [], len(backbone.depths) - 1
    for j, depth in enumerate(backbone.depths):
        node = network.add(f"stage{j + 1}", backbone.stage(j, depth), node)
        if j in backbone.exit_stages() or j == last:
            taps.append(Tap(node, *maps[j + 1]))
    return taps


@torch.no_grad()
def stage_maps(backbone: Backbone) -> list[tuple[int, int]]:
    """Channels and height of the map that leaves the stem and then each stage, for one image of `image_size`.

    Nothing is computed.
    """
    shapes = []
    with torch.device("meta"):
        x = torch.zeros(1, 3, backbone.image_size, backbone.image_size)
        for part in (backbone.stem(), *(backbone.stage(j, depth) for j, depth in enumerate(backbone.depths))):
            x = part.eval()(x)
            shapes.append((x.shape[1], x.shape[2]))
    return shapes
