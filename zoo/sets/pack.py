"""Pack image files into the shards that `zoo.sets.shards` reads."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

from ...errors import DataError
from .images import EncodedImages
from .shards import CLASSES

SHARD_BYTES = 256_000_000


def write_shards(data: EncodedImages, folder: Path, shard_bytes: int = SHARD_BYTES) -> list[Path]:
    """Pack the image files of `data`, as they are, into `folder`/<source>-000000.tar and so on, in archives of about `shard_bytes`.

    The same files give the same bytes. An archive is whole or absent.

    Raises:
        DataError: a file is empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for number, content in enumerate(_shards(data, shard_bytes)):
        path = folder / f"{data.source}-{number:06d}.tar"
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(content)
        written.append(part.replace(path))
    return written


def write_classes(classes: tuple[str, ...], path: Path) -> None:
    """`classes.txt`, which names the classes of all splits in `path`."""
    path.mkdir(parents=True, exist_ok=True)
    (path / CLASSES).write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")


def _shards(data: EncodedImages, shard_bytes: int) -> Iterator[bytes]:
    """The bytes of one archive after the other."""
    number = 0
    while number < len(data):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            while number < len(data) and (buffer.tell() == 0 or buffer.tell() < shard_bytes):
                file = Path(data.picture(number).file)
                suffix = {".jpeg": ".jpg"}.get(file.suffix.lower(), file.suffix.lower())
                picture = file.read_bytes()
                if not picture:
                    raise DataError(f"{file} is empty", hint="copy it again, or remove it")
                for ending, content in ((suffix, picture), (".cls", b"%d" % data.labels[number])):
                    info = tarfile.TarInfo(f"{number:09d}{ending}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
                number += 1
        yield buffer.getvalue()
