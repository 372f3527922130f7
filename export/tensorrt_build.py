"""Builds TensorRT engines ahead of time. Torch-free; shared by `trt` and `trt-rtx`.

An engine is built in a fresh process (`python -m kdzoo.export.tensorrt_build`), because a second build in one process gives
other bytes. The process reads the ONNX file on stdin and writes one line of JSON and then the engine on stdout: it never
sees a path. TensorRT 11 has no precision flags and no calibrators: precision lives in the ONNX.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import threading
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from ..errors import EnvironmentProblem, GateFailed, KdzooError, UnknownName, UsageError
from ..zoo.files import write_bytes
from .engine_sidecar import (
    RTX_CAPABILITIES,
    EngineInfo,
    gpu_compute_capability,
    installed_version,
    missing_package,
    read_header,
)
from .fixed_places import fixed_addresses, load_in_place
from .machine import architecture
from .tensor_spec import TensorSpec

Runtime = Literal["tensorrt_rtx", "tensorrt"]
# A block that the main thread took and the building thread gives back goes to the cache of the latter, and with it the place of a
# temporary to the heap of the former; and a large one given back moves the limit above which blocks are mapped.
PLAIN_HEAP = "glibc.malloc.tcache_count=0:glibc.malloc.mmap_threshold=131072"
DTYPES = {"FLOAT": "float32", "HALF": "float16", "UINT8": "uint8"}


@dataclass(frozen=True)
class EngineRequest:
    """`batch` is min, opt, max; `capability` None is a portable engine (RTX) or this machine's GPU (`tensorrt`)."""

    onnx: Path
    engine: Path
    runtime: Runtime
    capability: str | None
    batch: tuple[int, int, int]


def parse_capability(text: str) -> str:
    """`capability_name`; what TensorRT-RTX cannot build for is an `UnknownName`."""
    name = capability_name(text)
    if name not in RTX_CAPABILITIES:
        raise UnknownName("compute capability", text, RTX_CAPABILITIES)
    return name


def capability_name(text: str) -> str:
    """`8.6`, `86` and `sm86` are all "8.6"."""
    digits = text.strip().lower().removeprefix("sm").removeprefix("_").replace(".", "")
    return f"{digits[:-1]}.{digits[-1:]}"


def build_engine(request: EngineRequest) -> EngineInfo:
    """Build `request.engine`; the file appears whole or not at all."""
    low, opt, high = request.batch
    if not 1 <= low <= opt <= high:
        raise UsageError(f"batch {low}:{opt}:{high} is not 1 <= MIN <= OPT <= MAX")
    capability = request.capability
    if request.runtime == "tensorrt":
        capability = own_gpu(capability)
    elif capability is not None:
        capability = parse_capability(capability)
    start = perf_counter()
    order = {"runtime": request.runtime, "capability": capability, "batch": request.batch}
    answer, engine = _in_fresh_process(request.onnx, order)
    write_bytes(request.engine, engine)
    return EngineInfo(
        name=request.engine.name,
        sha256=hashlib.sha256(engine).hexdigest(),
        bytes=len(engine),
        runtime=request.runtime,
        runtime_version=answer["version"],
        compute_capability=capability,
        batch=request.batch,
        input=TensorSpec.from_dict(answer["input"]),
        output=TensorSpec.from_dict(answer["output"]),
        header=read_header(engine),
        reproducible=answer["reproducible"],
        system=f"{platform.system()} {architecture()}" if request.runtime == "tensorrt" else None,
        build_seconds=perf_counter() - start,
    )


def parse_check(onnx: Path) -> None:
    """The parser of TensorRT-RTX accepts the graph, or `GateFailed` with the parser's own words."""
    _in_fresh_process(onnx, {"runtime": "tensorrt_rtx", "capability": None, "batch": None})


def own_gpu(capability: str | None) -> str:
    """The GPU of this machine, the one that `tensorrt` builds for; an error where it is missing or is not `capability`."""
    if installed_version("tensorrt") is None:
        raise missing_package("tensorrt")
    gpu = gpu_compute_capability()
    if gpu is None:
        raise EnvironmentProblem(
            "tensorrt builds on an NVIDIA GPU and none was found",
            hint="build ahead of time without a GPU: pip install tensorrt-rtx and --format trt-rtx",
        )
    if capability is not None and capability_name(capability) != gpu:
        raise EnvironmentProblem(
            f"tensorrt builds for its own GPU, {gpu}, not for {capability}", hint="--format trt-rtx builds for other GPUs"
        )
    return gpu


def _in_fresh_process(onnx: Path, order: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """The answer and the engine of a process that runs `main` below."""
    if installed_version(order["runtime"]) is None:
        raise missing_package(order["runtime"])
    # A small, fixed environment: what lies in it moves the heap, and with it the bytes of the engine.
    kept = ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "SYSTEMROOT")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    path = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path)
    environment |= {"PYTHONPATH": path, "PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1", "GLIBC_TUNABLES": PLAIN_HEAP}
    # No cached bytecode, neither read nor written: compiling a module moves the heap, too.
    flags = ("-B", "-X", f"pycache_prefix={os.devnull}")
    command = [sys.executable, *flags, "-m", __name__, json.dumps(order)]
    try:
        with onnx.open("rb") as graph, fixed_addresses():
            done = subprocess.run(command, check=False, stdin=graph, capture_output=True, env=environment)
    except OSError as error:
        raise EnvironmentProblem(f"cannot read {onnx} or start {sys.executable}: {error.strerror}") from error
    line, _, engine = done.stdout.partition(b"\n")
    try:
        answer: dict[str, Any] = json.loads(line)
        if done.returncode != 0:
            raise ValueError("the engine may be cut short")
    except ValueError as error:
        words = done.stderr.decode(errors="replace").strip().splitlines()[-3:]
        raise EnvironmentProblem(
            f"the process that builds the engine died with status {done.returncode}: {' / '.join(words) or 'no last words'}",
            hint="a negative status is a signal, -9 mostly means too little memory",
        ) from error
    if "error" in answer:
        kinds: dict[str, type[KdzooError]] = {kind.__name__: kind for kind in (EnvironmentProblem, GateFailed, UsageError)}
        raise kinds[answer["error"]](answer["what"], hint=answer["hint"])
    # `tensorrt` chooses kernels by their measured speed.
    return {**answer, "reproducible": answer["placed"] and order["runtime"] == "tensorrt_rtx"}, engine


def main(order: dict[str, Any]) -> None:
    """The fresh process: ONNX on stdin; one line of JSON, then the engine, on stdout; TensorRT's own talk on stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    results: list[tuple[dict[str, Any], bytes]] = []
    placed = load_in_place(order["runtime"])
    graph = sys.stdin.buffer.read()

    def build() -> None:
        try:
            results.append(_build(log, graph, **order))
        except KdzooError as error:
            results.append(({"error": type(error).__name__, "what": error.what, "hint": error.hint}, b""))

    try:
        log = _log_of(order["runtime"])
    except EnvironmentProblem as error:
        results.append(({"error": type(error).__name__, "what": error.what, "hint": error.hint}, b""))
    else:
        # A new thread has a heap of its own, which what Python did before cannot have moved.
        thread = threading.Thread(target=build)
        thread.start()
        thread.join()
    if results:
        answer, engine = results[0]
        answers.write(json.dumps({**answer, "placed": placed}).encode() + b"\n" + engine)
        answers.close()
        os._exit(0)  # a crash while TensorRT's libraries are taken down says nothing about the engine


def _log_of(runtime: str) -> Any:
    """A class that keeps in `said` what TensorRT complains of."""
    try:
        trt: Any = import_module(runtime)
    except ImportError as error:
        hint = f"pip install --force-reinstall {runtime.replace('_', '-')}"
        raise EnvironmentProblem(f"{runtime} is installed but cannot be imported: {error}", hint=hint) from error

    class Log(trt.ILogger):  # type: ignore[misc]  # a class of a package that is imported at run time
        def __init__(self) -> None:
            super().__init__()
            self.said: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.said.append(message)

    return Log


def _build(
    make_log: Any, onnx: bytes, runtime: str, capability: str | None, batch: tuple[int, int, int] | None
) -> tuple[dict[str, Any], bytes]:
    """Parse, and build unless `batch` is None. `tensorrt` and `tensorrt_rtx` have the same Python API here."""
    trt: Any = import_module(runtime)
    log = make_log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx):
        words = _words([parser.get_error(i).desc() for i in range(parser.num_errors)] or log.said)
        hint = "the graph must be optimised, and its first node must cast the uint8 image to float"
        raise GateFailed(f"the parser of {runtime} rejects the graph: {words}", hint=hint)
    answer: dict[str, Any] = {"version": trt.__version__}
    if batch is None:
        return answer, b""
    image, logits = network.get_input(0), network.get_output(0)
    for key, tensor in (("input", image), ("output", logits)):
        dtype = DTYPES.get(tensor.dtype.name, tensor.dtype.name)
        answer[key] = {"name": tensor.name, "dtype": dtype, "shape": list(tensor.shape)}
    config = builder.create_builder_config()
    if runtime == "tensorrt_rtx" and capability is not None:
        config.num_compute_capabilities = 1
        accepted = config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), 0)
        assert accepted, "every name in RTX_CAPABILITIES is one that the builder knows"
    fixed = image.shape[0]
    if fixed < 0:
        profile = builder.create_optimization_profile()
        for number in range(network.num_inputs):  # the later parts of a cascade have several
            tensor = network.get_input(number)
            profile.set_shape(tensor.name, *((size, *list(tensor.shape)[1:]) for size in batch))
        config.add_optimization_profile(profile)
    elif set(batch) != {fixed}:
        raise UsageError(f"the graph has a fixed batch of {fixed}, which is not {':'.join(map(str, batch))}")
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        hint = ""
        if capability == "7.5":
            hint = "7.5 takes no float32 fully connected layer and no bfloat16: use --precision fp16, or leave 7.5 out"
        raise GateFailed(f"{runtime} cannot build this graph for {capability or 'every GPU'}: {_words(log.said)}", hint=hint)
    return answer, bytes(memoryview(engine))


def _words(messages: list[str]) -> str:
    """TensorRT's own words, less its complaint about a CUDA driver that building does not need."""
    lines = [line.strip() for message in messages for line in message.splitlines()]
    return " / ".join(line for line in lines if line and "catchCudaError" not in line) or "it gave no reason"


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
