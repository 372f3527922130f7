"""Names of files that come from somewhere else: what they may be before anything of them is fetched. Torch-free."""

from __future__ import annotations

import re
from typing import Any

from ..errors import IntegrityError

# Files that run code when they are loaded, or imported.
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".dill", ".npy")
CODE = (".py", ".pyc", ".pyw", ".so", ".pyd", ".dll", ".dylib")
OPENVINO_WEIGHTS = ".openvino.bin"  # bare numbers, whose places the .xml beside them names
DRIVER = "cascade_driver.py"  # runs the parts of a cascade; `verify` holds it to the one of this kdzoo


def check_name(name: object) -> str:
    """Raises `IntegrityError` unless `name` is a plain relative path of a file that holds neither a pickle nor a program."""
    hint = "do not use it, and tell whoever published it"
    plain = isinstance(name, str) and bool(re.fullmatch(r"[^/\\:\x00-\x1f\x7f]+(/[^/\\:\x00-\x1f\x7f]+)*", name))
    steps = name.split("/") if isinstance(name, str) else []
    # Windows leaves blanks and dots at the end of a name out.
    plain = plain and ".git" not in steps and not any(step.endswith((" ", ".")) for step in steps)
    if not isinstance(name, str) or not plain or name.startswith("~"):
        raise IntegrityError(f"a manifest names the file {name!r}, which is not a plain path inside its folder", hint=hint)
    suffixes = {f".{suffix}" for suffix in steps[-1].removesuffix(OPENVINO_WEIGHTS).lower().split(".")[1:]}
    if suffixes & {*PICKLES, *CODE} and steps[-1] != DRIVER:
        raise IntegrityError(f"a manifest names the file {name!r}: such files can hold code, and kdzoo reads none", hint=hint)
    return name


def check_files(files: object) -> dict[str, dict[str, Any]]:
    """The files of a manifest, each with `sha256` and `bytes`; raises `IntegrityError` at the first that cannot be."""
    if not isinstance(files, dict):
        raise IntegrityError("a manifest does not say which files belong to it", hint="export and push again")
    for name, described in files.items():
        check_name(name)
        digest, size = (described.get(k) for k in ("sha256", "bytes")) if isinstance(described, dict) else (None, None)
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest) or type(size) is not int or size < 0:
            raise IntegrityError(f"a manifest does not say sha256 and bytes of {name!r}", hint="export and push again")
    return files
