"""Does the host wait for the device inside a training step? Used by `train_step.py`, which prints the answer.

Three ways to see it, of which the first two need no accelerator: every operator that hands a value to the host is noted as it
is called; on the meta device, whose tensors have no values, reading one fails, and every copy from the host shows; on CUDA,
torch's own check (`set_sync_debug_mode`) turns each synchronisation into an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

READING = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2", "unique_dim"}
STAGED = 64 * 1024  # bytes of pageable memory that CUDA takes without waiting, whatever `non_blocking` says


class HostWaits(TorchDispatchMode):
    """`found` gets one sentence for each wait while the mode is on."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        if name in READING:
            self.found.append(f"{name} reads a value")
        elif name == "_to_copy" and "device" in kwargs:
            self._copy(args[0], kwargs["device"], bool(kwargs.get("non_blocking")))
        elif name == "copy_" and isinstance(args[1], Tensor):
            self._copy(args[1], args[0].device, any(args[2:]) or bool(kwargs.get("non_blocking")))
        return func(*args, **kwargs)

    def _copy(self, source: Tensor, device: torch.device, is_non_blocking: bool) -> None:
        if device.type == source.device.type:
            return
        copy = f"copy of {source.nbytes} bytes ({source.dtype}) from {source.device.type}"
        if not is_non_blocking:
            self.found.append(f"{copy} without non_blocking")
        elif source.nbytes > STAGED and not (torch.cuda.is_available() and source.is_pinned()):
            self.found.append(f"{copy} that is not pinned and too large to be staged")


def host_waits(step: Callable[[], object], device: torch.device) -> list[str]:
    """What makes the host wait in one call of `step`, which works on `device` and was called before."""
    with HostWaits() as waits:
        try:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            step()
        except RuntimeError as error:
            waits.found.append(" ".join(str(error).split())[:200])
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    return waits.found
