"""kdzoo: train one multi-branch network, deploy any of its branches as a measured file.

The functions here are those of the command line and import what they need when they are called; `import kdzoo` costs nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .export.package import Package
    from .export.select import Choice
    from .serve.client.client import AsyncClient, Client
    from .zoo.checkpoint import Checkpoint

# From 1.29 on onnxruntime tells its makers what it is used for; nothing is sent from here unless somebody asked for it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "__version__", "export_branch", "load", "select"]


def __getattr__(name: str) -> Any:
    """The clients of a server, imported when they are asked for."""
    if name not in ("AsyncClient", "Client"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .serve.client import client

    return getattr(client, name)


def load(source: str | None = None, branch: str | int | None = None) -> Checkpoint | Package:
    """Open an entry of the zoo, a run, a checkpoint or a package; without a name, as `kdzoo export` chooses.

    `org/name@revision` and `file:///srv/models/org/name` are fetched and checked; of a collection `branch` names the package.

    Raises:
        kdzoo.errors.KdzooError: there is no such thing, or it is corrupt.
    """
    from .export.source import resolve

    return resolve(source, lambda line: None, None if branch is None else str(branch))


# Not `export`: the package of that name takes its place among our attributes as soon as it is imported.
def export_branch(source: str | None = None, branch: str = "target", **settings: Any) -> Package:
    """Write the package of one target of `source`; `settings` are those of `kdzoo.export.exporter.export`, and the fields
    of its `Request`.

    Raises:
        kdzoo.errors.KdzooError: the request cannot be met, a gate failed, or something is missing or corrupt.
    """
    from .export.exporter import export
    from .export.source import resolve_checkpoint
    from .zoo.target import Target

    return export(resolve_checkpoint(source, lambda line: None), Target.parse(branch), **settings)


def select(*sources: str, objective: str = "top1", batch: int = 1, percentile: str = "p50", **limits: str | float) -> Choice:
    """The measured files within limits, `choice.fitting`, the best first: `select("family", max_latency="2ms", min_top1=0.6)`.

    `sources` are packages, folders of packages, or published; without one, the bundled entries. The limits are `max_latency`,
    `max_macs`, `max_params`, `max_size`, `min_top1`.

    Raises:
        kdzoo.errors.NothingFits: it says what comes nearest. Other KdzooErrors: a source or a limit is none.
    """
    from .export.candidates import bundled, having, read_packages
    from .export.select import FIGURES, Limits
    from .export.select import select as best_of

    keys = {figure.option.removeprefix("--").replace("-", "_"): key for key, figure in FIGURES.items()}
    unknown = [name for name in limits if name not in keys]
    if unknown:
        from .errors import UnknownName

        raise UnknownName("limit", unknown[0], list(keys))
    wanted = Limits.parse(**{keys[name]: str(value) for name, value in limits.items()})
    candidates = read_packages(sources, batch, percentile) if sources else bundled()
    return best_of(having(candidates, {}, batch), wanted, objective)
