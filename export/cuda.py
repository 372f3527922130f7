"""The few calls of the CUDA driver that running an engine takes, through ctypes: no torch, no CUDA toolkit."""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING, Any

from ..errors import EnvironmentProblem

if TYPE_CHECKING:
    from numpy.typing import NDArray

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


class Cuda:
    """The first GPU with the context that all CUDA code of this process shares, and one stream. Used by one thread at a time."""

    def __init__(self) -> None:
        try:
            self.driver = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise EnvironmentProblem(f"there is no NVIDIA driver: {error}", hint="kdzoo doctor") from error
        device, self.context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        name = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", name, len(name), device)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), device)
        self.device, self.name = device, name.value.decode(errors="replace")
        try:
            self.enter()
            self.call("cuStreamCreate", ctypes.byref(stream), 1)  # CU_STREAM_NON_BLOCKING
        except EnvironmentProblem:
            self.call("cuDevicePrimaryCtxRelease_v2", device)
            raise
        self.stream: int = stream.value or 0

    def call(self, function: str, *arguments: Any) -> None:
        """One function of the driver, or `EnvironmentProblem` with its number and name of the error."""
        status = getattr(self.driver, function)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self.driver.cuGetErrorName(status, ctypes.byref(text))
            hint = "another program holds the memory of the GPU: `nvidia-smi`" if status == 2 else "kdzoo doctor"
            raise EnvironmentProblem(f"{function}: error {status}, {(text.value or b'unknown').decode()}", hint=hint)

    def enter(self) -> None:
        """Make the context that of the calling thread."""
        self.call("cuCtxSetCurrent", self.context)

    def allocate(self, size: int) -> int:
        pointer = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
        return pointer.value

    def free(self, pointer: int) -> None:
        self.call("cuMemFree_v2", ctypes.c_uint64(pointer))

    def upload(self, pointer: int, array: NDArray[Any]) -> None:
        """Queue the copy of a contiguous array to the GPU."""
        source = ctypes.c_void_p(array.ctypes.data)
        self.call(
            "cuMemcpyHtoDAsync_v2", ctypes.c_uint64(pointer), source, ctypes.c_size_t(array.nbytes), ctypes.c_void_p(self.stream)
        )

    def download(self, array: NDArray[Any], pointer: int) -> None:
        """Queue the copy from the GPU into a contiguous array; it is there after `wait`."""
        target = ctypes.c_void_p(array.ctypes.data)
        self.call(
            "cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(pointer), ctypes.c_size_t(array.nbytes), ctypes.c_void_p(self.stream)
        )

    def wait(self) -> None:
        """Until all that is queued is done."""
        self.call("cuStreamSynchronize", ctypes.c_void_p(self.stream))

    def close(self) -> None:
        self.call("cuStreamDestroy_v2", ctypes.c_void_p(self.stream))
        self.call("cuDevicePrimaryCtxRelease_v2", self.device)
