"""kdzoo: train one multi-branch network, deploy any of its branches as a measured file.

The functions here are those of the command line and import what they need when they are called; `import kdzoo` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .export.package import Package
    from .zoo.checkpoint import Checkpoint

__version__ = "0.1.0"
__all__ = ["__version__", "export_branch", "load"]


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
    """Write the package of one target of `source`; `settings` are those of `kdzoo.export.exporter.export`.

    Raises:
        kdzoo.errors.KdzooError: the request cannot be met, a gate failed, or something is missing or corrupt.
    """
    from .export.exporter import export
    from .export.source import resolve_checkpoint
    from .zoo.target import Target

    return export(resolve_checkpoint(source, lambda line: None), Target.parse(branch), **settings)
