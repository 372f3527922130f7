"""How an engine is run: with a TensorRT and a CUDA driver that are made of Python, so that every call can be looked at."""

from __future__ import annotations

import ctypes
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kdzoo.errors import EnvironmentProblem, UsageError
from kdzoo.export import cuda
from kdzoo.export.engine_session import EngineSession
from kdzoo.export.engine_sidecar import gpu_compute_capability, installed_version
from kdzoo.tests.small_engines import needs_rtx, request
from kdzoo.tests.small_students import raw_images


class Memory:
    """The GPU: buffers by their address. It has the methods of `Cuda`."""

    name, stream = "A GPU of Python", 7

    def __init__(self) -> None:
        self.buffers: dict[int, bytearray] = {}
        self.freed: list[int] = []
        self.waited = self.closed = False
        self.pending: list[tuple[int, weakref.ref[Any]]] = []

    def enter(self) -> None:
        assert not self.closed

    def allocate(self, size: int) -> int:
        address = 4096 * (1 + len(self.buffers) + len(self.freed))
        self.buffers[address] = bytearray(size)
        return address

    def free(self, pointer: int) -> None:
        del self.buffers[pointer]
        self.freed.append(pointer)

    def upload(self, pointer: int, array: np.ndarray[Any, Any]) -> None:
        assert array.flags["C_CONTIGUOUS"] and len(self.buffers[pointer]) >= array.nbytes
        self.pending.append((pointer, weakref.ref(array)))
        self.waited = False

    def copy(self) -> None:
        """What is queued reads its array now, not before."""
        for pointer, reference in self.pending:
            array = reference()
            assert array is not None, "the array was given back before it was copied"
            self.buffers[pointer][: array.nbytes] = array.tobytes()
        self.pending.clear()

    def download(self, array: np.ndarray[Any, Any], pointer: int) -> None:
        array[...] = np.frombuffer(self.buffers[pointer][: array.nbytes], array.dtype).reshape(array.shape)
        self.waited = False

    def wait(self) -> None:
        self.copy()
        self.waited = True

    def close(self) -> None:
        self.closed = True


class Engine:
    """Takes `image` uint8 N 2 2 3, at most four at once, and gives their means as `logits` and how many there were as `count`."""

    num_io_tensors = 3

    def __init__(self, memory: Memory) -> None:
        self.memory, self.addresses, self.shape, self.fails = memory, dict[str, int](), (0, 0, 0, 0), False

    def get_tensor_name(self, number: int) -> str:
        return ("logits", "image", "count")[number]

    def get_tensor_dtype(self, name: str) -> str:
        return {"image": "uint8", "logits": "float32", "count": "int32"}[name]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "image" else "out"

    def create_execution_context(self) -> Any:
        return self

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        count = self.shape[0] or -1
        return {"image": (count, 2, 2, 3), "logits": (count, 3), "count": (1,)}[name]

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape  # type: ignore[assignment]
        return name == "image" and 1 <= shape[0] <= 4 and shape[1:] == (2, 2, 3)

    def set_tensor_address(self, name: str, pointer: int) -> None:
        self.addresses[name] = pointer

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == self.memory.stream
        self.memory.copy()
        image = np.frombuffer(self.memory.buffers[self.addresses["image"]], np.uint8)[: 12 * self.shape[0]].reshape(self.shape)
        logits, count = image.mean((1, 2)).astype(np.float32).tobytes(), np.array([len(image)], np.int32).tobytes()
        for name, values in (("logits", logits), ("count", count)):
            self.memory.buffers[self.addresses[name]][: len(values)] = values
        return not self.fails


class Logger:
    ERROR = 1


def tensorrt(engine: Engine | None) -> Any:
    """The names of the Python API that are used, the logger's complaint included."""

    def deserialize(log: Any) -> Any:
        def load(content: bytes) -> Engine | None:
            assert content == b"an engine"
            log.log(1, "magic tag does not match")
            log.log(3, "chatter")
            return engine

        return SimpleNamespace(deserialize_cuda_engine=load)

    return SimpleNamespace(
        ILogger=Logger, Runtime=deserialize, nptype=np.dtype, TensorIOMode=SimpleNamespace(INPUT="in"), __version__="11.5",
        DataType=SimpleNamespace(BF16="bfloat16"),
    )  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "model.engine").write_bytes(b"an engine")
    return tmp_path / "model.engine"


def test_an_engine_gives_all_outputs_of_every_batch_and_keeps_its_buffers(path: Path) -> None:
    memory = Memory()
    session = EngineSession(path, "trt-rtx", tensorrt(Engine(memory)), memory)  # type: ignore[arg-type]
    images = np.random.default_rng(0).integers(0, 256, (4, 2, 2, 3)).astype(np.uint8)
    for count in (2, 4, 1, 3):
        found = session.everything(images[:count])
        assert memory.waited, "outputs are read before they are there"
        np.testing.assert_allclose(found["logits"], images[:count].mean((1, 2)), rtol=1e-6)
        assert found["count"].tolist() == [count]
    np.testing.assert_array_equal(session(images[::2]), session.everything(images[::2].copy())["logits"])  # strides are no matter
    assert len(memory.freed) == 2 and len(memory.buffers) == 3  # image and logits have grown, once
    assert (session.ran_on.runtime, session.ran_on.version, session.ran_on.device) == ("trt-rtx", "11.5", "A GPU of Python")
    assert session.ran_on.threads is None
    session.close()
    assert memory.buffers == {} and memory.closed


def test_what_an_engine_cannot_do_is_told_in_its_own_words(path: Path) -> None:
    memory = Memory()
    with pytest.raises(EnvironmentProblem, match=r"model\.engine cannot be loaded: magic tag does not match$"):
        EngineSession(path, "tensorrt", tensorrt(None), memory)  # type: ignore[arg-type]
    assert memory.closed, "the context and the stream are kept"
    memory = Memory()
    engine = Engine(memory)
    session = EngineSession(path, "tensorrt", tensorrt(engine), memory)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"no image of shape \(5, 2, 2, 3\)"):
        session(np.zeros((5, 2, 2, 3), np.uint8))
    engine.fails = True
    with pytest.raises(EnvironmentProblem, match="the engine did not run"):
        session(np.zeros((1, 2, 2, 3), np.uint8))
    assert memory.waited, "the copies that are queued have lost their arrays"


class Later(Engine):
    """A later part of a cascade in bfloat16: adds one bit to `features`, once for each image."""

    def get_tensor_name(self, number: int) -> str:
        return ("image", "features", "more")[number]

    def get_tensor_dtype(self, name: str) -> str:
        return "uint8" if name == "image" else "bfloat16"

    def get_tensor_mode(self, name: str) -> str:
        return "out" if name == "more" else "in"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (4,) if name == "more" else (-1,)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self.memory.copy()
        image, features = (self.memory.buffers[self.addresses[name]] for name in ("image", "features"))
        self.memory.buffers[self.addresses["more"]][:8] = (np.frombuffer(features, np.uint16)[:4] + image[0]).tobytes()
        return True


def test_several_inputs_are_kept_until_they_are_copied_and_bfloat16_goes_as_its_bits(path: Path) -> None:
    memory = Memory()
    session = EngineSession(path, "tensorrt", tensorrt(Later(memory)), memory)  # type: ignore[arg-type]
    features = np.array([0x3F80, 0x4000, 0xBF80, 0x7F80], np.uint16)
    # The arrays do not lie in one piece: copies are made of both.
    given = {"image": np.array([[1, 9], [2, 9]], np.uint8)[:, 0], "features": np.repeat(features, 2)[::2]}
    assert session.everything(given)["more"].tolist() == [0x3F81, 0x4001, 0xBF81, 0x7F81]
    with pytest.raises(UsageError, match=r"bits of features in bfloat16, as uint16, not float32"):
        session.everything({**given, "features": np.zeros(4, np.float32)})


class Driver:
    """libcuda with one GPU: it notes every call, and fails where it is told to."""

    def __init__(self, fails: str = "") -> None:
        self.calls: list[str] = []
        self.fails = fails

    def __getattr__(self, name: str) -> Any:
        def function(*arguments: Any) -> int:
            self.calls.append(name)
            if name == "cuGetErrorName":
                arguments[1]._obj.value = b"CUDA_ERROR_OUT_OF_MEMORY"
            if name == "cuDeviceGetName":
                arguments[0].value = b"NVIDIA Test"
            if name == "cuMemAlloc_v2":
                arguments[0]._obj.value = 0xFFFF_0000_1000  # does not fit into an int
            return 2 if name == self.fails else 0

        return function


def test_the_driver_is_asked_for_memory_and_its_errors_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    gpu = cuda.Cuda()
    assert gpu.name == "NVIDIA Test" and driver.calls[0] == "cuInit" and driver.calls[-2:] == ["cuCtxSetCurrent", "cuStreamCreate"]
    assert gpu.allocate(100) == 0xFFFF_0000_1000
    driver.fails = "cuMemAlloc_v2"
    with pytest.raises(EnvironmentProblem, match="cuMemAlloc_v2: error 2, CUDA_ERROR_OUT_OF_MEMORY") as error:
        gpu.allocate(100)
    assert "nvidia-smi" in error.value.hint
    driver.fails = "cuStreamCreate"
    with pytest.raises(EnvironmentProblem, match="cuStreamCreate"):
        cuda.Cuda()
    assert driver.calls[-1] == "cuDevicePrimaryCtxRelease_v2"

    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(EnvironmentProblem, match="there is no NVIDIA driver"):
        cuda.Cuda()


@needs_rtx
def test_the_names_that_are_used_are_those_of_the_installed_package() -> None:
    import tensorrt_rtx as trt

    for owner, used in {
        trt: ["DataType", "ILogger", "Runtime", "TensorIOMode", "nptype", "__version__"],
        trt.DataType: ["BF16"],
        trt.Runtime: ["deserialize_cuda_engine"],
        trt.ICudaEngine: [name for name in dir(Engine) if name.startswith(("get_", "num_", "create_"))],
        trt.IExecutionContext: ["set_input_shape", "set_tensor_address", "get_tensor_shape", "execute_async_v3"],
    }.items():
        assert [name for name in used if not hasattr(owner, name)] == []


@pytest.mark.gpu
def test_an_engine_runs_on_the_gpu_and_agrees_with_onnxruntime(tmp_path: Path) -> None:
    from kdzoo.export.engine_sidecar import RTX_CAPABILITIES
    from kdzoo.export.onnx_file import OnnxRunner
    from kdzoo.export.tensorrt_build import build_engine

    gpu = gpu_compute_capability()
    runtimes = {"tensorrt": True, "tensorrt_rtx": gpu in RTX_CAPABILITIES}  # TensorRT-RTX knows no Hopper
    found = [name for name, runs in runtimes.items() if runs and installed_version(name) is not None]
    if gpu is None or not found:
        pytest.skip(f"no TensorRT here runs on a GPU of {gpu}")
    asked = request(tmp_path, runtime=found[0], capability=gpu)
    build_engine(asked)
    trt = __import__(found[0])
    images = raw_images(16)[:, :8, :8].copy()
    with EngineSession(asked.engine, found[0], trt, cuda.Cuda()) as session:
        for count in (1, 16, 4):
            expected = OnnxRunner(asked.onnx)(images[:count])
            assert np.abs(session(images[:count]) - expected).max() < 0.05 * np.abs(expected).max()
