"""Places in memory that are the same in every run. Linux; elsewhere nothing is promised. Torch-free.

TensorRT-RTX numbers the temporaries of a dynamic batch in the order of their addresses: where its libraries and its heap lie
decides bytes of the engine. The kernel gives the highest free place below what is mapped already, and that depends on what Python
has loaded, on the length of paths and on chance (ASLR). So everything above a fixed line is reserved first; what comes then lies
just below the line. What is left is the version of Python: another one (3.12 after 3.11) gives other numbers.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

LINE = 0x6000_0000_0000  # below all that the kernel places by itself, above the program and its first heap
STEP = 1 << 32  # each library lies below a line of its own, and the heap below the last one
NO_ASLR = 0x0040000
FIXED = 0x100000  # MAP_FIXED_NOREPLACE
RESERVE = 0x2 | 0x20 | 0x4000 | FIXED  # MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE
PAGE = 1 << 16  # or several of them
LOOKS = 8


@contextmanager
def fixed_addresses() -> Iterator[None]:
    """A process started in here has the same addresses in every run, where that is allowed (not in Docker's default).

    The personality is this thread's own, and its children inherit it.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    personality = ctypes.CDLL(None).personality
    before = personality(0xFFFFFFFF)
    fixed = before != -1 and personality(before | NO_ASLR) != -1
    try:
        yield
    finally:
        if fixed:
            personality(before)


def load_in_place(runtime: str) -> bool:
    """Load the libraries of a runtime, each just below its line, and let all that is mapped from now on lie below the last line.

    Gives False where that is not possible here; the libraries are then loaded when the runtime is imported, wherever they fit.
    """
    spec = find_spec(f"{runtime}_libs") if sys.platform.startswith("linux") else None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    libraries = sorted(path for folder in folders for path in Path(folder).glob("*.so*"))
    lines = count(LINE, -STEP)
    try:
        for library in libraries:
            reserve_above(next(lines))
            ctypes.CDLL(str(library))
        import_module(runtime)
        reserve_above(LINE - 16 * STEP)
    except (OSError, ImportError):
        return False
    return bool(libraries)


def reserve_above(line: int) -> None:
    """Take every free place above `line`, so that the kernel gives none of them. Raises `OSError` where it is not allowed to.

    What Python maps or gives back while it reads what is mapped is not seen, so it looks again.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    for _ in range(LOOKS):
        taken = _take_above(libc.mmap, line)
        probe = libc.mmap(None, PAGE, 0, RESERVE & ~FIXED, -1, 0)
        libc.munmap(ctypes.c_void_p(probe), ctypes.c_size_t(PAGE))
        if taken and probe is not None and probe < line:
            return
    raise OSError(ctypes.get_errno(), f"what is mapped now does not lie below {line:x}")


def _take_above(mmap: Any, line: int) -> bool:
    """One look; False where a place was taken in the meantime."""
    free, took_all = line, True
    for row in Path("/proc/self/maps").read_text().splitlines():  # in the order of addresses
        span, *_, name = row.split()
        low, high = (int(end, 16) for end in span.split("-"))
        # The stack grows down, into the place below it.
        if low > free and name != "[stack]" and high < 1 << 63:
            took_all &= mmap(free, low - free, 0, RESERVE, -1, 0) == free
        free = max(free, high)
    return took_all
