"""What an engine says of itself without a GPU, its JSON sidecar, and the check before it is loaded. Torch-free."""

from __future__ import annotations

import ctypes
import hashlib
import json
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import EnvironmentProblem, IntegrityError
from ..zoo.files import write_bytes
from .tensor_spec import TensorSpec

RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
MAGIC = b"vtrt"  # every TensorRT-RTX engine begins with it
HEADER_BYTES = 64
SIDECAR_SCHEMA = 1


@dataclass(frozen=True)
class EngineInfo:
    """What there is to know of an engine without a GPU. `build_seconds` is the one field that the sidecar leaves out."""

    name: str
    sha256: str
    bytes: int
    runtime: str
    runtime_version: str
    compute_capability: str | None
    batch: tuple[int, int, int]
    input: TensorSpec
    output: TensorSpec
    header: dict[str, Any]
    reproducible: bool
    build_seconds: float | None = None


def installed_version(runtime: str) -> str | None:
    """Version of the runtime, or None where it is not installed. Does not import it: it is hundreds of megabytes."""
    from importlib import metadata  # slow, and the fresh process does not need it

    for distribution in (runtime, f"{runtime}_cu13", f"{runtime}_cu12"):
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(distribution)
    return None


def gpu_compute_capability() -> str | None:
    """Compute capability of the first CUDA GPU, asked of the driver itself; None where there is no driver or no GPU."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    for value, attribute in ((major, 75), (minor, 76)):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        if cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
    return f"{major.value}.{minor.value}"


def read_header(engine: bytes) -> dict[str, Any]:
    """What the first 64 bytes of an engine say; found by comparing engines, NVIDIA does not document them.

    0 magic, 8 layout (u32), 16 length of the file (u64), 24 version (4 bytes), 32 bit set of capabilities (u32).
    """
    if engine[:4] != MAGIC or len(engine) < HEADER_BYTES:
        return {"magic": engine[:4].hex()}
    bits = int.from_bytes(engine[32:36], "little")
    return {
        "magic": MAGIC.decode(),
        "layout": int.from_bytes(engine[8:12], "little"),
        "bytes": int.from_bytes(engine[16:24], "little"),
        "version": ".".join(str(byte) for byte in engine[24:28]),
        "capability_bits": bits,
        "capabilities": [name for bit, name in enumerate(RTX_CAPABILITIES) if bits >> bit & 1],
    }


def write_sidecar(info: EngineInfo, path: Path) -> None:
    """The same engine gives the same bytes."""
    fields = {key: value for key, value in asdict(info).items() if key != "build_seconds"}
    write_bytes(path, (json.dumps({"schema": SIDECAR_SCHEMA, **fields}, indent=2, sort_keys=True) + "\n").encode())


def read_sidecar(path: Path) -> EngineInfo:
    """What `write_sidecar` wrote, or `IntegrityError`."""
    try:
        fields = json.loads(path.read_bytes())
        if fields.pop("schema") != SIDECAR_SCHEMA:
            raise ValueError("a schema that this version does not know")
        fields["batch"] = tuple(fields["batch"])
        fields["input"], fields["output"] = TensorSpec.from_dict(fields["input"]), TensorSpec.from_dict(fields["output"])
        return EngineInfo(**fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path} is no sidecar of an engine: {error}", hint="export the engine again") from error


def preflight(sidecar: Path, engine: Path) -> None:
    """Is this the file that its sidecar describes (`IntegrityError`), and can this machine run it (`EnvironmentProblem`)?

    To be called before anything is deserialised: TensorRT's own words for both are hard to read.
    """
    info = read_sidecar(sidecar)
    try:
        content = engine.read_bytes()
    except OSError as error:
        raise IntegrityError(f"cannot read {engine}: {error.strerror}", hint="export the engine again") from error
    facts = {"length": len(content), "header": read_header(content), "sha256": hashlib.sha256(content).hexdigest()}
    told = {"length": info.bytes, "header": info.header, "sha256": info.sha256}
    for fact, found in facts.items():
        if found != told[fact]:
            raise IntegrityError(
                f"{engine} is not the file that {sidecar.name} describes: {fact} is {found}, not {told[fact]}",
                hint="export or download the engine again",
            )
    found_version = installed_version(info.runtime)
    if found_version is None:
        raise missing_package(info.runtime)
    if found_version != info.runtime_version:
        raise EnvironmentProblem(
            f"{engine.name} was built by {info.runtime} {info.runtime_version}; installed is {found_version}",
            hint=f"pip install '{info.runtime.replace('_', '-')}=={info.runtime_version}', or export the engine again here",
        )
    gpu = gpu_compute_capability()
    if gpu is None:
        raise EnvironmentProblem(
            f"{engine.name} needs an NVIDIA GPU and none was found",
            hint="run the ONNX file beside it with onnxruntime, or look at `nvidia-smi`",
        )
    wanted = info.compute_capability
    # A portable RTX engine covers every capability from 8.0 on.
    if gpu != wanted if wanted else [int(part) for part in gpu.split(".")] < [8, 0]:
        raise EnvironmentProblem(
            f"{engine.name} is for compute capability {wanted or '8.0 or newer'}; this GPU is {gpu}",
            hint=f"export again for this GPU, or run on a GPU of {wanted or '8.0 or newer'}",
        )


def missing_package(runtime: str) -> EnvironmentProblem:
    """The error that says how to install `runtime`."""
    return EnvironmentProblem(f"the package {runtime} is not installed", hint=f"pip install {runtime.replace('_', '-')}")
