from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .console import Console, verb

FOLDER = click.Path(path_type=Path)


@verb(
    click.argument("sources", nargs=-1, required=True, metavar="SOURCE..."),
    click.option("--branch", "-b", "branches", multiple=True, help="Of a folder with several packages. Repeats. [all]"),
    click.option("--docker", is_flag=True, help="A container: Dockerfile, requirements, the packages."),
    click.option("--kserve", is_flag=True, help="An InferenceService of KServe that runs the container."),
    click.option("--systemd", is_flag=True, help="A unit of systemd."),
    click.option("--output", "-o", type=FOLDER, default=Path("deploy"), show_default=True, help="Folder of those."),
    click.option("--triton", type=FOLDER, help="Write a Triton model repository there."),
    click.option("--threads", type=click.IntRange(1), help="That compute. [what --rate needs, else 2]"),
    click.option("--rate", type=click.FloatRange(0, min_open=True), help="Requests/s that one server should answer."),
    click.option("--max-batch", type=click.IntRange(1, 4096), default=32, show_default=True, help="Images in one computation."),
    click.option("--grace", type=click.IntRange(0), default=30, show_default=True, help="Seconds to end in, after SIGTERM."),
    click.option("--image", default="kdzoo-server:latest", show_default=True, help="The container, as KServe pulls it."),
    click.option("--wheel", type=FOLDER, help="Put this kdzoo into the container. [the one of PyPI]"),
    click.option("--triton-backend", default="auto", show_default=True, help="onnxruntime, tensorrt or python."),
    click.option("--device", default="cpu", show_default=True, help="cpu or gpu, for --triton."),
    click.option("--instances", type=click.IntRange(1), help="Of each model, for --triton. [cores; 1 on a GPU]"),
    click.option("--precision", "-p", "precisions", multiple=True, help="Only these, for --triton. Repeats. [all]"),
    click.option("--force", is_flag=True, help="Replace a folder that is not empty."),
)
def deploy(console: Console, sources: tuple[str, ...], branches: tuple[str, ...], **options: Any) -> None:
    """Write what a bigger engine or a service manager needs to serve a package.

    That is a container, an InferenceService of KServe, a unit of systemd, a Triton model repository, or several of them.
    A SOURCE is a package, a folder that holds packages, or published: org/name@revision. Processor, memory and requests/s
    follow from what was measured of the packages, and the files say how.
    """
    from ..errors import UsageError
    from ..export.trials import open_packages
    from ..serve.deploy.files import KINDS

    kinds, triton = [kind for kind in KINDS if options[kind]], options["triton"]
    if not kinds and triton is None:
        raise UsageError("nothing to write", known=["--docker", "--kserve", "--systemd", "--triton DIR"])
    if triton is not None and kinds and triton.resolve() == options["output"].resolve():
        raise UsageError(f"{triton} cannot be both", hint="name another folder with --output")
    packages = open_packages(sources, branches, console.say)
    document: dict[str, Any] = {"packages": [str(package.folder) for package in packages]}
    told: list[str] = []
    if kinds:
        told += write_files(console, packages, kinds, options, document)
    if triton is not None:
        told += write_repository(console, packages, triton, options, document)
    console.result(document, lambda: "\n".join(told))
    if triton is not None:
        console.hint(f"tritonserver --model-repository {triton}")
    elif "docker" in kinds:
        console.hint(f"docker build -t {options['image']} {options['output']}")


def write_files(
    console: Console, packages: list[Any], kinds: list[str], options: dict[str, Any], document: dict[str, Any]
) -> list[str]:
    """The lines that tell of them."""
    from ..serve.deploy.files import write_deployment
    from ..serve.deploy.resources import derive

    console.say("measuring the memory of a server of these packages")
    resources = derive(packages, **{name: options[name] for name in ("threads", "rate", "max_batch")})
    settings = {name: options[name] for name in ("image", "wheel", "grace", "force")}
    written = write_deployment(packages, options["output"], kinds, resources, **settings, say=console.say)
    document |= {"folder": str(written.folder), "files": list(written.files), "resources": resources.document}
    shown = [name for name in written.files if "/" not in name]
    return [*(str(written.folder / name) for name in shown), *resources.reasons]


def write_repository(
    console: Console, packages: list[Any], folder: Path, options: dict[str, Any], document: dict[str, Any]
) -> list[str]:
    """The lines that tell of it."""
    from ..export.triton import TritonOptions, write_triton

    wanted = TritonOptions(options["triton_backend"], options["device"], options["instances"], options["precisions"])
    repository = write_triton(packages, folder, wanted, force=options["force"], say=console.say)
    document["triton"] = repository.document
    return [str(folder / model.name) for model in repository.models]


command = deploy
