"""How much memory a server of packages takes: it is opened in a process of its own and computes its largest batches on all threads.

    python -m kdzoo.serve.deploy.memory THREADS MAX_BATCH PACKAGE...

Torch-free.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from ...errors import EnvironmentProblem
from ...export.machine import this_machine
from ...export.package import Package
from ..choice import CPU, choose
from ..model import Model, open_model
from ..settings import Batching, Wishes

STATUS = Path("/proc/self/status")
FRONT = ("uvicorn", "uvloop", "starlette.applications", "grpc", "prometheus_client", "PIL.Image", "multipart")
PATIENCE = 300  # seconds


def peak_memory(packages: Sequence[Package], threads: int, max_batch: int) -> int:
    """Bytes at the peak, of a server of these packages.

    Raises:
        EnvironmentProblem: it could not be measured.
    """
    folders = [str(package.folder.resolve()) for package in packages]
    command = [sys.executable, "-m", __name__, str(threads), str(max_batch), *folders]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
        return int(done.stdout.split()[-1])
    except subprocess.TimeoutExpired:
        why = f"it took more than {PATIENCE} seconds"
    except (ValueError, IndexError):
        why = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]
    raise EnvironmentProblem(
        f"the memory of a server could not be measured: {why}", hint="kdzoo serve with these packages says more"
    )


def main(arguments: Sequence[str]) -> None:
    threads, max_batch, *folders = arguments
    for name in FRONT:
        with suppress(ImportError):  # what is not installed takes no memory
            import_module(name)
    batching = Batching(max_batch=int(max_batch), threads=int(threads))
    machine = this_machine()
    packages = [Package.open(Path(folder)) for folder in folders]
    models = [open_model(package, choose(package, machine, Wishes(device=CPU)), batching) for package in packages]
    for model in models:
        compute(model)
    print(peak())


def compute(model: Model) -> None:
    """The largest batch, on every thread at the same time, a few times over: arenas grow on the first calls."""
    import numpy as np

    images, _ = model.package.golden()
    batch = model.prepared(np.resize(images, (model.batch[1], *images.shape[1:])))
    with ThreadPoolExecutor(len(model.sessions)) as pool:
        list(pool.map(lambda session: [session.everything(batch) for _ in range(3)], model.sessions))


def peak() -> int:
    """Bytes, of this process since it began; what its parent had before does not count, as it would in `getrusage`."""
    if STATUS.is_file():
        lines = dict(line.partition(":")[::2] for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines())
        return 1024 * int(lines["VmHWM"].split()[0])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: in bytes


if __name__ == "__main__":
    main(sys.argv[1:])
