"""Options that several verbs share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..zoo.target import Target
    from .console import Console

data = click.option(
    "--data", type=click.Path(path_type=Path), help="Images: a folder with cifar-100-python/, an .npz, or class folders."
)
device = click.option("--device", default="auto", show_default=True, help="cpu, cuda, or auto.")
source = click.argument("source", required=False)
token = click.option("--token", help="Access token of the Hub. [HF_TOKEN, or what hf auth login has kept]")


def hush(console: Console) -> None:
    """Let huggingface_hub talk as little as we do."""
    from huggingface_hub.utils import disable_progress_bars, logging  # type: ignore[attr-defined]

    if not console.interactive:
        disable_progress_bars()
    if console.quiet:
        logging.set_verbosity_error()


def expand(branches: Sequence[str], targets: Callable[[], Iterable[str]]) -> list[Target]:
    """The parsed targets, each once; `all-targets` stands for those that `targets` gives."""
    from ..zoo.target import Target

    parsed = [Target.parse(text) for text in branches]
    known = [Target.parse(text) for text in targets()] if any(target.word == "all-targets" for target in parsed) else []
    return list(dict.fromkeys(t for target in parsed for t in (known if target.word == "all-targets" else [target])))


def pick_device(name: str) -> str:
    """`auto` is the GPU where there is one. Raises `EnvironmentProblem` for a GPU that is not there."""
    import torch

    from ..errors import EnvironmentProblem, UnknownName

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UnknownName("device", name, ["auto", "cpu", "cuda", "cuda:0"])
    if name.startswith("cuda") and int(name.partition(":")[2] or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise EnvironmentProblem(f"torch sees {count} CUDA GPUs, not {name}", hint="use --device cpu; kdzoo doctor says more")
    return name
