"""Several processes that train one network: who they are, and what they must agree on.

`torchrun --nproc-per-node N -m kdzoo train ...` starts them; alone, every function here does nothing. Every process draws the
random numbers of the whole batch and takes its share of the images (`train.batches`), BatchNorm sees the whole batch, and losses
are weighted by the share: the run equals that of one process but for the order of float additions. Not equal is what depends on
the images that one process happens to see: dropout, and losses that are no mean over images (`hint_reduction="batch"` of BYOT and
Self-D). With `accumulate` every process cuts its own share into parts: BatchNorm sees a part of all shares together, which holds
other images than the part of the same number in a run of one process.

Shapes: `B` batch, `C` channels, `S` everything else.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import EnvironmentProblem


@dataclass(frozen=True)
class Processes:
    """This process among those of a run. `local_rank` counts on its own machine: it is the number of its GPU."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this one writes files and talks."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all are here."""
        if self.world > 1:
            dist.barrier()

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is up in any process; all of them must ask."""
        if self.world == 1:
            return flag
        raised = torch.tensor(float(flag), device=device)
        dist.all_reduce(raised)
        return bool(raised > 0)

    def sums(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every scalar summed over the processes, in one message. The host does not wait on a GPU."""
        if self.world == 1:
            return values
        vector = torch.stack([value.detach().double() for value in values.values()])
        dist.all_reduce(vector)
        return dict(zip(values, vector.unbind(), strict=True))


ALONE = Processes()
# One process may wait for hours, for a teacher that another run is training, and the others wait for it. A process that has died is
# noticed at once by its closed connections.
PATIENCE = timedelta(days=2)


def launched() -> Processes:
    """Who this process is by the environment that torchrun sets. Touches nothing."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if all(name in os.environ for name in names):
        return Processes(*(int(os.environ[name]) for name in names))
    return ALONE


def restarts() -> int:
    """How often torchrun has started these processes again because one of them had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def launch() -> str:
    """What names this call of torchrun on this machine, restarts included; empty without torchrun."""
    if launched() == ALONE:
        return ""
    name = f"{os.environ.get('TORCHELASTIC_RUN_ID', '')} on {socket.gethostname()} by process {os.getppid()}"
    return hashlib.sha256(name.encode()).hexdigest()[:12]  # manifests are published, names of machines need not be


def own_device(device: torch.device) -> torch.device:
    """The GPU of this process among those of its machine; raises `EnvironmentProblem` where there are too few."""
    processes = launched()
    if device.type != "cuda" or processes.world == 1:
        return device
    if processes.local_rank >= torch.cuda.device_count():
        raise EnvironmentProblem(
            f"process {processes.local_rank + 1} of this machine has no GPU: torch sees {torch.cuda.device_count()}",
            hint="torchrun --nproc-per-node takes at most as many processes as there are GPUs",
        )
    return torch.device("cuda", processes.local_rank)


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Connect the processes for the time of the block: nccl between GPUs, gloo between processors."""
    processes = launched()
    if processes.world == 1 or dist.is_initialized():
        yield processes
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # The store of torchrun outlives a restart; without a prefix the new processes may read the addresses of the dead ones in it.
    store, rank, world = next(rendezvous("env://"))
    store = PrefixStore(f"start {restarts()}", store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
    try:
        yield processes
    finally:
        dist.destroy_process_group()


def distribute(network: nn.Module, processes: Processes) -> nn.Module:
    """`network` as it is called in training: with several processes, one that averages gradients while they are computed."""
    if processes.world == 1:
        return network
    device = next(network.parameters()).device
    places = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(network, device_ids=places, gradient_as_bucket_view=True)


class _SumOverProcesses(torch.autograd.Function):
    """All-reduce, whose gradient is the all-reduce of the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class WholeBatchNorm(_BatchNorm):
    """BatchNorm over the batches of all processes, on any device (`nn.SyncBatchNorm` runs on GPUs only).

    In evaluation mode it is the layer that it replaces. Processes may hold different numbers of images.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        return None

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x_BCS = input.float().flatten(2) if input.ndim > 2 else input.float()[:, :, None]
        size = x_BCS.new_full((1,), float(x_BCS.shape[0] * x_BCS.shape[2]))
        total = _sum_over_processes(torch.cat([x_BCS.sum(dim=(0, 2)), size]))
        count, mean_C = total[-1].detach(), total[:-1] / total[-1].detach()
        centred_BCS = x_BCS - mean_C[:, None]
        var_C = _sum_over_processes(centred_BCS.square().sum(dim=(0, 2))) / count
        with torch.no_grad():
            if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
                assert self.momentum is not None
                self.running_mean.lerp_(mean_C, self.momentum)
                self.running_var.lerp_(var_C * count / (count - 1), self.momentum)
        scale_C = torch.rsqrt(var_C + self.eps) * self.weight
        return (centred_BCS * scale_C[:, None] + self.bias[:, None]).view_as(input).to(input.dtype)


def _sum_over_processes(x: Tensor) -> Tensor:
    return cast(Tensor, _SumOverProcesses.apply(x))


def share_batch_norm(module: nn.Module, processes: Processes) -> None:
    """Let every BatchNorm of `module` see the whole batch, in place; names and values of its tensors stay."""
    if processes.world == 1:
        return
    for name, child in list(module.named_children()):
        if isinstance(child, _BatchNorm):
            whole = WholeBatchNorm(child.num_features, child.eps, child.momentum, device="meta")
            for kind in ("_parameters", "_buffers"):
                getattr(whole, kind).update(getattr(child, kind))
            setattr(module, name, whole.train(child.training))
        else:
            share_batch_norm(child, processes)
