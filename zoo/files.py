"""Files that are whole or absent: temporary name, fsync, rename; checksums; JSON with a schema version. Torch-free."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import EnvironmentProblem, IntegrityError, KdzooError, OutputError


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def not_writable(path: Path, error: OSError) -> KdzooError:
    """The error to raise when `path` could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EnvironmentProblem(
            f"the disk is full: {path} could not be written", hint="free some space, or name another --output"
        )
    return OutputError(f"{path} cannot be written: {error.strerror or error}", hint="name another place with --output")


def write_bytes(path: Path, data: bytes) -> None:
    """Write `path` whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        sync(part)
        part.replace(path)
    except OSError as error:
        raise not_writable(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink()


def to_json(document: Any) -> bytes:
    """Stable, readable JSON: sorted keys, two spaces, a newline at the end; NaN is refused."""
    return (json.dumps(document, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n").encode()


def write_json(path: Path, document: Any) -> None:
    write_bytes(path, to_json(document))


def read_json(path: Path, schema: int | None = None) -> Any:
    """The document in `path`.

    Raises:
        IntegrityError: the file is missing, or is not JSON, or has no schema version where one is expected.
        EnvironmentProblem: it was written by a newer kdzoo than this one.
    """
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise IntegrityError(f"{path} is missing", hint="the folder is incomplete: copy it again, or make it again") from None
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror}", hint="look at its permissions") from None
    except ValueError as error:
        raise IntegrityError(f"{path} is not valid JSON ({error})", hint="the file is corrupt: copy it again") from None
    if schema is not None:
        found = document.get("schema_version") if isinstance(document, dict) else None
        if not isinstance(found, int):
            raise IntegrityError(f"{path} has no schema version", hint="it is not a file that kdzoo wrote")
        if found > schema:
            raise EnvironmentProblem(
                f"{path} has schema version {found}; this kdzoo reads up to {schema}", hint="pip install --upgrade kdzoo"
            )
    return document


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its name when the block ends well and vanishes when it does not.

    A folder that stands at `target` is kept until the new one is whole; `standing` finds it if the machine dies between the two
    renames.
    """
    target = target.absolute()
    if target == Path.cwd():
        raise OutputError("the folder you stand in cannot be replaced", hint="name a new folder with --output")
    old = predecessor(target)
    made = [parent for parent in target.parents if not parent.exists()]  # the nearest first
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if old.exists() and not target.exists():
            old.rename(target)  # a process died between its two renames
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    except OSError as error:
        raise not_writable(target, error) from error
    try:
        part.chmod(0o755)
        yield part
        for path in (*part.rglob("*"), part):
            sync(path)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)  # is there where a process died after both renames
            target.rename(old)
        part.rename(target)
        sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise not_writable(target, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if old.exists() and not target.exists():
            old.rename(target)
        if not target.exists():
            for parent in made:
                with suppress(OSError):
                    parent.rmdir()


@contextmanager
def alone(target: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the one right to make `target` among all processes of this machine; `waiting` is called where another one holds it.

    The lock is a file beside `target`; it ends with the process, however that ends. Where the system has no such locks (Windows),
    nothing is held.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target.with_name(f".{target.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise not_writable(target, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def predecessor(target: Path) -> Path:
    """Where `new_folder` keeps what stood at `target` while it puts the new folder there."""
    return target.parent / f".{target.name}.old"


def standing(target: Path) -> Path:
    """The folder to read: `target`, or its predecessor where a replacement is under way or was cut off. Moves nothing."""
    old = predecessor(target.absolute())
    return old if old.exists() and not target.exists() else target
