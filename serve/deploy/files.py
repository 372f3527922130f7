"""Writes what was asked for into one folder, whole or not at all. Torch-free."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import UsageError
from ...export.package import MANIFEST, Package
from ...export.request import check_output
from ...zoo.files import new_folder
from .command import Command
from .docker import DOCKERFILE, IGNORE, PACKAGES, REQUIREMENTS, dockerfile, ignored, requirements
from .kserve import MANIFEST as KSERVE
from .kserve import inference_service, service_name, to_yaml
from .resources import Resources
from .systemd import UNIT, unit

KINDS = ("kserve", "docker", "systemd")


@dataclass(frozen=True)
class Deployment:
    """What was written: names relative to the folder."""

    folder: Path
    files: tuple[str, ...]
    resources: Resources


def write_deployment(
    packages: Sequence[Package],
    folder: Path,
    kinds: Sequence[str],
    resources: Resources,
    *,
    image: str = "kdzoo-server:latest",
    wheel: Path | None = None,
    grace: int = 30,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Deployment:
    """Write files of `kinds`, out of `KINDS`; for docker a folder to build in, with copies of the packages.

    Raises:
        OutputError: something stands at `folder`, and `force` is not set. UsageError: two packages have one name, or no such wheel.
        IntegrityError: a file is not the one of its manifest.
    """
    for package in packages:
        check_output(folder, package.folder, force)
    names = [package.name for package in packages]
    if len(set(names)) < len(names):
        raise UsageError(f"two of these packages have one name: {', '.join(sorted(names))}", hint="deploy one of them")
    if wheel is not None and not (wheel.is_file() and wheel.suffix == ".whl"):
        raise UsageError(f"{wheel} is no wheel", hint="pip wheel --no-deps . makes one of kdzoo")
    command = Command(resources.threads, resources.max_batch, grace, resources.max_body)
    with new_folder(folder) as part:
        if "docker" in kinds:
            for package in packages:
                copy_package(package, part / PACKAGES / package.name)
            name = wheel.name if wheel is not None else None
            if wheel is not None:
                shutil.copyfile(wheel, part / wheel.name)
            write(part / DOCKERFILE, dockerfile(names, command, resources, name))
            write(part / IGNORE, ignored(name))
            write(part / REQUIREMENTS, requirements(resources))
        if "kserve" in kinds:
            behind = replace(command, is_behind_proxy=True)
            service = inference_service(service_name(packages[0].document["entry"]), image, names, behind, resources)
            write(part / KSERVE, to_yaml(service, behind, resources))
        if "systemd" in kinds:
            write(part / UNIT, unit([package.folder for package in packages], command, resources))
        written = tuple(sorted(path.relative_to(part).as_posix() for path in part.rglob("*") if path.is_file()))
    say(f"{folder}: {len(written)} files")
    return Deployment(folder, written, resources)


def copy_package(package: Package, place: Path) -> None:
    """All files of a package that are here, checked."""
    package.verify_files()
    for name in (MANIFEST, *package.here):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package.folder / name, place / name)


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
