"""A container of the server with its packages inside: a Dockerfile, what it installs, and what its build needs. Torch-free.

kdzoo itself is installed without its dependencies, of which the server needs few, and torch is not one of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from ... import __version__
from ...export.machine import installed
from .command import ADVICE, ENVIRONMENT, GRPC, HTTP, Command
from .resources import Resources

DOCKERFILE, IGNORE, REQUIREMENTS = "Dockerfile", ".dockerignore", "requirements.txt"
PACKAGES = "packages"  # in the folder of the build, and below ROOT
ROOT = "/srv"
USER = 10001
PYTHON = "3.12"
# What `kdzoo serve` imports, and nothing else; without --grpc-port it needs no grpcio and no protobuf.
NEEDS = (
    "click", "grpcio", "httptools", "numpy", "onnxruntime", "pillow", "prometheus-client", "protobuf", "python-multipart", "pyyaml",
    "starlette", "uvicorn", "uvloop",
)  # fmt: skip
FURTHER = {"openvino": ("openvino",)}  # by runtime


def requirements(resources: Resources) -> str:
    """One line for each, pinned to what this machine has, for that is what was tried."""
    names = sorted({*NEEDS, *(name for each in resources.files for name in FURTHER.get(each.runtime, ()))})
    versions = installed(*names)
    return "".join(f"{name}=={versions[name]}\n" if name in versions else f"{name}\n" for name in names)


def dockerfile(names: Sequence[str], command: Command, resources: Resources, wheel: str | None = None) -> str:
    """`names`: of the folders below `PACKAGES`. wheel: the file of a kdzoo that no index has."""
    health = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{HTTP}/v2/health/ready', timeout=2)"
    words = command.arguments([f"{ROOT}/{PACKAGES}/{name}" for name in names])
    variables = " ".join(f"{key}={value}" for key, value in ENVIRONMENT.items())
    comments = "\n".join(f"# {reason}" for reason in resources.reasons)
    install = (
        f"COPY {wheel} /tmp/\nRUN pip install --no-cache-dir --no-deps /tmp/{wheel} && rm /tmp/{wheel}"
        if wheel
        else f"ARG KDZOO=kdzoo=={__version__}\n"
        'RUN pip install --no-cache-dir --no-deps "$KDZOO"'
    )  # fmt: skip
    return f"""\
# docker build -t kdzoo-server . && docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \\
#   --stop-timeout {command.stop_seconds} --memory {resources.memory_limit}m -p {HTTP}:{HTTP} -p {GRPC}:{GRPC} kdzoo-server
# No limit of the processor: a throttled server answers late.
# {ADVICE}
{comments}
FROM python:{PYTHON}-slim

ENV {variables}
COPY {REQUIREMENTS} /tmp/
RUN pip install --no-cache-dir -r /tmp/{REQUIREMENTS} && rm /tmp/{REQUIREMENTS}
# Without its dependencies: the server needs no torch.
{install}
RUN useradd --uid {USER} --no-create-home --shell /usr/sbin/nologin kdzoo
COPY {PACKAGES} {ROOT}/{PACKAGES}

USER {USER}
WORKDIR {ROOT}
EXPOSE {HTTP} {GRPC}
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 CMD {json.dumps(["python", "-c", health])}
ENTRYPOINT ["kdzoo"]
CMD {json.dumps(words)}
"""


def ignored(wheel: str | None = None) -> str:
    """The build gets what it copies, and nothing else."""
    return "".join(f"{line}\n" for line in ("*", f"!{PACKAGES}", f"!{REQUIREMENTS}", *([f"!{wheel}"] if wheel else [])))
