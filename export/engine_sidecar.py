"""What an engine says of itself without a GPU, its JSON sidecar, and the check before it is loaded. Torch-free."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import EnvironmentProblem, IntegrityError
from ..zoo.files import write_bytes
from .machine import Machine, ask_cuda, this_machine
from .obstacles import FORMAT_OF, of_engine
from .obstacles import RTX_CAPABILITIES as RTX_CAPABILITIES
from .tensor_spec import TensorSpec

MAGIC = b"vtrt"  # every TensorRT-RTX engine begins with it
HEADER_BYTES = 64
SIDECAR_SCHEMA = 2


@dataclass(frozen=True)
class EngineInfo:
    """What there is to know of an engine without a GPU. `build_seconds` is the one field that the sidecar leaves out.

    Attributes:
        system: "Linux x86_64", where the engine runs on no other; None for TensorRT-RTX, whose engines do.
        compatible: what it runs on beside its own version and GPU, if TensorRT was told so: `version`, newer ones of the same
            major version; `hardware`, every GPU from Ampere on.
    """

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
    system: str | None = None
    compatible: tuple[str, ...] = ()
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
    gpus = ask_cuda()[0]
    return gpus[0].capability if gpus else None


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
    """What `write_sidecar` wrote, now or in an older version.

    Raises:
        IntegrityError: it is missing, or is no sidecar. EnvironmentProblem: it was written by a newer kdzoo than this one.
    """
    from .schema import SIDECAR, mismatches  # slow, and the fresh process that builds engines does not need it

    try:
        fields = json.loads(path.read_bytes())
        schema = fields.pop("schema")
        if not isinstance(schema, int):
            raise ValueError("its schema is no number")
        if schema > SIDECAR_SCHEMA:
            raise EnvironmentProblem(
                f"{path} has schema {schema}; this kdzoo reads up to {SIDECAR_SCHEMA}", hint="pip install --upgrade kdzoo"
            )
        for field, value, takes in mismatches(fields, SIDECAR):
            raise ValueError(f"{field} cannot be {value!r:.60}; it takes {takes}")
        fields["batch"], fields["compatible"] = tuple(fields["batch"]), tuple(fields.get("compatible", ()))
        fields["input"], fields["output"] = TensorSpec.from_dict(fields["input"]), TensorSpec.from_dict(fields["output"])
        info = EngineInfo(**fields)
        if info.runtime not in FORMAT_OF:
            raise ValueError(f"no runtime is called {info.runtime!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path} is no sidecar of an engine: {error}", hint="export the engine again") from error
    return info


def check_engine(info: EngineInfo, sidecar: Path, engine: Path) -> None:
    """Raises `IntegrityError` unless `engine` is the file that its sidecar, read as `info`, describes."""
    try:
        content = engine.read_bytes()
    except OSError as error:
        raise IntegrityError(f"cannot read {engine}: {error.strerror}", hint="export the engine again") from error
    facts: dict[str, Any] = {"length": len(content), "header": read_header(content), "sha256": hashlib.sha256(content).hexdigest()}
    told = {"length": info.bytes, "header": info.header, "sha256": info.sha256}
    other = "" if info.name == engine.name else f", which is {info.name}"
    for fact, found in facts.items():
        if found != told[fact]:
            raise IntegrityError(
                f"{engine} is not the file that {sidecar.name} describes{other}: {fact} is {found}, not {told[fact]}",
                hint="export or download the engine again",
            )
    if info.runtime == "tensorrt_rtx" and facts["header"]["magic"] != MAGIC.decode():
        raise IntegrityError(f"{engine} is no engine of TensorRT-RTX: it begins with {content[:4]!r}", hint="export it again")


def preflight(sidecar: Path, engine: Path, machine: Machine | None = None) -> None:
    """Is this the file that its sidecar describes (`IntegrityError`), and can `machine`, by default this one, run it
    (`EnvironmentProblem`)?

    To be called before anything is deserialised: TensorRT's own words for both are hard to read.
    """
    from .origin import Origin

    info = read_sidecar(sidecar)
    check_engine(info, sidecar, engine)
    for obstacle in of_engine(info, machine or this_machine(), Origin.beside(engine.parent)):
        raise EnvironmentProblem(obstacle.what, hint=obstacle.hint)


def missing_package(runtime: str) -> EnvironmentProblem:
    """The error that says how to install `runtime`."""
    return EnvironmentProblem(f"the package {runtime} is not installed", hint=f"pip install {runtime.replace('_', '-')}")
