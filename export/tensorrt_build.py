"""Builds TensorRT engines ahead of time. Torch-free; shared by `trt` and `trt-rtx`.

An engine is built in a fresh process (`python -m kdzoo.export.tensorrt_build`), because a second build in one process gives
other bytes. The process reads the ONNX file on stdin and writes one line of JSON and then the engine on stdout: it never
sees a path. TensorRT 11 has no precision flags and no calibrators: precision lives in the ONNX.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
from .tensor_spec import TensorSpec

Runtime = Literal["tensorrt_rtx", "tensorrt"]
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
    """`8.6`, `86` and `sm86` are all "8.6"; anything that TensorRT-RTX cannot build for is an `UnknownName`."""
    digits = text.strip().lower().removeprefix("sm").removeprefix("_").replace(".", "")
    name = f"{digits[:-1]}.{digits[-1:]}"
    if name not in RTX_CAPABILITIES:
        raise UnknownName("compute capability", text, RTX_CAPABILITIES)
    return name


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
    if capability not in (None, gpu):
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
    environment |= {"PYTHONPATH": path, "PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1"}
    # No cached bytecode, neither read nor written: compiling a module moves the heap, too.
    flags = ("-B", "-X", f"pycache_prefix={os.devnull}")
    command = [sys.executable, *flags, "-m", __name__, json.dumps(order)]
    try:
        with onnx.open("rb") as graph, _fixed_addresses() as fixed:
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
    return {**answer, "reproducible": fixed and order["runtime"] == "tensorrt_rtx"}, engine


def main(order: dict[str, Any]) -> None:
    """The fresh process: ONNX on stdin; one line of JSON, then the engine, on stdout; TensorRT's own talk on stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    result: list[tuple[dict[str, Any], bytes]] = []

    def build() -> None:
        try:
            result.append(_build(sys.stdin.buffer.read(), **order))
        except KdzooError as error:
            result.append(({"error": type(error).__name__, "what": error.what, "hint": error.hint}, b""))

    # A new thread has a heap of its own, which what Python did before cannot have moved.
    thread = threading.Thread(target=build)
    thread.start()
    thread.join()
    if result:
        answers.write(json.dumps(result[0][0]).encode() + b"\n" + result[0][1])
        answers.close()
        os._exit(0)  # a crash while TensorRT's libraries are taken down says nothing about the engine


@contextmanager
def _fixed_addresses() -> Iterator[bool]:
    """A process started in here has the same addresses in every run; False where that is forbidden (Docker's default).

    TensorRT-RTX numbers the temporaries of a dynamic batch in the order of their addresses: with randomised addresses
    (ASLR) each run of the same build gives other bytes. The personality is this thread's own, and its children inherit it.
    """
    if not sys.platform.startswith("linux"):
        yield False
        return
    personality = ctypes.CDLL(None).personality
    before, no_aslr = personality(0xFFFFFFFF), 0x0040000
    fixed = before != -1 and personality(before | no_aslr) != -1
    try:
        yield fixed
    finally:
        if fixed:
            personality(before)


def _build(onnx: bytes, runtime: str, capability: str | None, batch: tuple[int, int, int] | None) -> tuple[dict[str, Any], bytes]:
    """Parse, and build unless `batch` is None. `tensorrt` and `tensorrt_rtx` have the same Python API here."""
    try:
        trt: Any = import_module(runtime)
    except ImportError as error:
        hint = f"pip install --force-reinstall {runtime.replace('_', '-')}"
        raise EnvironmentProblem(f"{runtime} is installed but cannot be imported: {error}", hint=hint) from error
    said: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc]  # a class of a package that is imported at run time
        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                said.append(message)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx):
        words = _words([parser.get_error(i).desc() for i in range(parser.num_errors)] or said)
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
    fixed, *rest = image.shape
    if fixed < 0:
        profile = builder.create_optimization_profile()
        profile.set_shape(image.name, *((size, *rest) for size in batch))
        config.add_optimization_profile(profile)
    elif set(batch) != {fixed}:
        raise UsageError(f"the graph has a fixed batch of {fixed}, which is not {':'.join(map(str, batch))}")
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        hint = ""
        if capability == "7.5":
            hint = "7.5 takes no float32 fully connected layer and no bfloat16: use --precision fp16, or leave 7.5 out"
        raise GateFailed(f"{runtime} cannot build this graph for {capability or 'every GPU'}: {_words(said)}", hint=hint)
    return answer, bytes(memoryview(engine))


def _words(messages: list[str]) -> str:
    """TensorRT's own words, less its complaint about a CUDA driver that building does not need."""
    lines = [line.strip() for message in messages for line in message.splitlines()]
    return " / ".join(line for line in lines if line and "catchCudaError" not in line) or "it gave no reason"


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
