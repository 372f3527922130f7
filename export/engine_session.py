"""An engine, loaded and run. `tensorrt` and `tensorrt_rtx` have the same Python API here; memory goes through the CUDA driver.

A call copies the images to the GPU, runs, and copies the outputs back: what is measured holds all three. NumPy has no bfloat16:
its bits are carried as uint16, from one part of a cascade to the next.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EnvironmentProblem, UsageError
from .cuda import Cuda
from .runtime import RanOn, Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .runtime import Inputs


class EngineSession(Session):
    """`trt` is the module of the runtime. Buffers on the GPU are kept, and grow with the largest batch seen."""

    def __init__(self, path: Path, runtime: str, trt: Any, cuda: Cuda) -> None:
        self.cuda, self.buffers = cuda, dict[str, tuple[int, int]]()
        said: list[str] = []

        class Log(trt.ILogger):  # type: ignore[misc]  # a class of a package that is imported at run time
            def log(self, severity: Any, message: str) -> None:
                if severity <= trt.ILogger.ERROR:
                    said.append(message)

        self.said, self.log, self.bits = said, Log(), set[str]()
        self.runtime: Any = None
        self.engine: Any = None
        self.context: Any = None
        try:
            self.load(path, trt)
        except BaseException:
            self.close()
            raise
        self.ran_on = RanOn(runtime, trt.__version__, cuda.name, None)

    def load(self, path: Path, trt: Any) -> None:
        """The engine, made ready, and what goes in and out of it."""
        # TensorRT does not keep its own parts alive: an engine without its runtime is a crash.
        self.runtime = trt.Runtime(self.log)
        self.engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise self.failed(f"{path.name} cannot be loaded")
        self.context = self.engine.create_execution_context()
        if self.context is None:
            raise self.failed(f"{path.name} loads and cannot be made ready")
        names = [self.engine.get_tensor_name(number) for number in range(self.engine.num_io_tensors)]
        types = {name: self.engine.get_tensor_dtype(name) for name in names}
        self.bits = {name for name, kind in types.items() if kind == trt.DataType.BF16}
        self.types = {name: "uint16" if name in self.bits else trt.nptype(kind) for name, kind in types.items()}
        self.inputs = tuple(name for name in names if self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
        self.outputs = [name for name in names if name not in self.inputs]

    def everything(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        self.cuda.enter()
        arrays = {name: self.taken(name, given) for name, given in self.by_name(inputs).items()}  # kept until all is copied
        try:
            found = self.queue(arrays)
        except BaseException:
            with suppress(EnvironmentProblem):  # the first problem is told
                self.cuda.wait()
            raise
        self.cuda.wait()
        return found

    def taken(self, name: str, given: NDArray[Any]) -> NDArray[Any]:
        """One input, as it is copied."""
        import numpy as np

        if name in self.bits and given.dtype != np.uint16:
            raise UsageError(f"the engine takes the bits of {name} in bfloat16, as uint16, not {given.dtype}")
        return np.ascontiguousarray(given, self.types[name])

    def queue(self, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All of a call; the outputs are there after `Cuda.wait`."""
        import numpy as np

        for name, array in arrays.items():
            if not self.context.set_input_shape(name, array.shape):
                shape = tuple(self.engine.get_tensor_shape(name))
                raise UsageError(
                    f"the engine takes no {name} of shape {array.shape}: it was built for {shape} in a range of batches"
                )
            self.bind(name, array.nbytes)
            self.cuda.upload(self.buffers[name][0], array)
        found = {name: np.empty(tuple(self.context.get_tensor_shape(name)), self.types[name]) for name in self.outputs}
        for name, array in found.items():
            self.bind(name, array.nbytes)
        if not self.context.execute_async_v3(self.cuda.stream):
            raise self.failed("the engine did not run")
        for name, array in found.items():
            self.cuda.download(array, self.buffers[name][0])
        return found

    def bind(self, name: str, size: int) -> None:
        """A buffer of at least `size` bytes for one tensor."""
        pointer, capacity = self.buffers.get(name, (0, 0))
        if capacity < size:
            if pointer:
                self.cuda.free(pointer)
                del self.buffers[name]
            pointer = self.cuda.allocate(size)
            self.buffers[name] = (pointer, size)
        self.context.set_tensor_address(name, pointer)

    def failed(self, what: str) -> EnvironmentProblem:
        words = " / ".join(line.strip() for message in self.said for line in message.splitlines() if line.strip())
        return EnvironmentProblem(f"{what}: {words or 'TensorRT gave no reason'}", hint="kdzoo doctor says what this machine runs")

    def close(self) -> None:
        self.cuda.enter()
        for pointer, _ in self.buffers.values():
            self.cuda.free(pointer)
        self.buffers.clear()
        self.context = self.engine = self.runtime = None
        self.cuda.close()
