"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path

import click

data = click.option("--data", type=click.Path(path_type=Path), help="Images: a folder with cifar-100-python/, an .npz, or class folders.")
device = click.option("--device", default="auto", show_default=True, help="cpu, cuda, or auto.")
source = click.argument("source", required=False)


def pick_device(name: str) -> str:
    """`auto` is the GPU where there is one. Raises `EnvironmentProblem` for a GPU that is not there."""
    import torch

    from ..errors import EnvironmentProblem, UnknownName

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not name.startswith("cuda"):
        raise UnknownName("device", name, ["auto", "cpu", "cuda"])
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise EnvironmentProblem("torch sees no CUDA GPU on this machine", hint="use --device cpu; kdzoo doctor says more")
    return name
