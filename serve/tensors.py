"""The words of the Open Inference Protocol v2 for tensors, for HTTP and gRPC alike: data types, and from bytes or numbers to arrays
and back. NumPy only.

https://github.com/kserve/open-inference-protocol, with the binary tensor and classification extensions of Triton.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

from .refusal import Reason, Refusal

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..export.tensor_spec import TensorSpec
    from .model import Model

DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8", "int16": "INT16",
    "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip

LONGEST_US = 10**12  # whoever waits longer waits for ever; an event loop takes no more than so many seconds


@dataclass(frozen=True)
class Wanted:
    """An output that is asked for: as raw bytes or as numbers; with `classes`, as so many best classes."""

    name: str
    binary: bool = False
    classes: int = 0


@dataclass
class InferRequest:
    """What is asked of a model. `timeout`: seconds, None where none is given."""

    images: NDArray[Any]
    wanted: Sequence[Wanted]
    id: str = ""
    timeout: float | None = None


@dataclass(frozen=True)
class Given:
    """An input as it came: `data` are raw bytes, or numbers in lists."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: Any = field(repr=False)


def to_images(model: Model, given: Sequence[Given]) -> NDArray[Any]:
    """The one input of a model, checked; a Refusal says what is wrong with it."""
    import numpy as np

    spec = model.input
    if len(given) != 1:
        raise bad(f"expected 1 input but got {len(given)} inputs for model '{model.name}': '{spec.name}'")
    tensor = given[0]
    if tensor.name != spec.name:
        raise bad(f"unexpected inference input '{tensor.name}' for model '{model.name}': it takes '{spec.name}'")
    datatype = DATATYPES[spec.dtype]
    if tensor.datatype != datatype:
        raise bad(f"inference input '{spec.name}' data-type is '{tensor.datatype}', but model '{model.name}' expects '{datatype}'")
    shape = tensor.shape
    if not isinstance(shape, (list, tuple)) or not all(type(side) is int and 0 <= side < 2**31 for side in shape):
        raise bad(f"the shape of inference input '{spec.name}' must be a list of numbers, not {shape!r:.80}")
    if len(shape) != len(spec.shape) or any(want not in (-1, side) for side, want in zip(shape, spec.shape, strict=True)):
        raise bad(
            f"unexpected shape for input '{spec.name}' for model '{model.name}'. Expected {list(spec.shape)}, got {list(shape)}"
        )
    check_batch(model, shape[0])
    dtype = np.dtype(spec.dtype)
    if isinstance(tensor.data, (bytes, memoryview)):
        size = prod(shape) * dtype.itemsize
        if len(tensor.data) != size:
            raise bad(
                f"unexpected size {len(tensor.data)} for input '{spec.name}', expecting {size} bytes for model '{model.name}'"
            )
        return np.frombuffer(tensor.data, dtype.newbyteorder("<")).reshape(shape)
    return _from_numbers(tensor.data, shape, dtype, spec)


def check_batch(model: Model, size: int) -> None:
    """Raises a Refusal where a request has no images, or more than are computed at once."""
    if size < 1:
        raise bad(f"inference request for model '{model.name}' holds no image")
    if size > model.batch[1]:
        raise bad(f"inference request batch-size must be <= {model.batch[1]} for '{model.name}', got {size}")


def _from_numbers(data: Any, shape: Sequence[int], dtype: Any, spec: TensorSpec) -> NDArray[Any]:
    import numpy as np

    try:
        numbers = np.asarray(data)
        is_number = numbers.dtype.kind in "iu" or (numbers.dtype.kind == "f" and dtype.kind == "f")
        if not is_number:
            raise ValueError("these are no numbers of its data type")
        if dtype.kind in "iu" and (numbers.min() < np.iinfo(dtype).min or numbers.max() > np.iinfo(dtype).max):
            raise ValueError(f"they lie between {numbers.min()} and {numbers.max()}")
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(numbers.astype(dtype, copy=False).reshape(shape))
    except (ValueError, TypeError, OverflowError) as error:
        raise bad(
            f"the data of inference input '{spec.name}' do not fit {spec.dtype} of shape {list(shape)}: {error!s:.200}"
        ) from None


def check_wanted(model: Model, wanted: Sequence[Wanted]) -> list[Wanted]:
    """All outputs where none is named; raises a Refusal for one that the model does not have."""
    known = [output.name for output in model.outputs]
    for each in wanted:
        if each.name not in known:
            raise bad(f"unexpected inference output '{each.name}' for model '{model.name}': it gives {', '.join(known)}")
        if each.classes < 0 or (each.classes and each.name.partition("_")[0] != "logits"):
            raise bad(f"classification of {each.classes} classes of inference output '{each.name}' is not possible")
    return list(wanted)


def classified(logits: NDArray[Any], count: int, labels: Sequence[str]) -> NDArray[Any]:
    """The classification extension: of every image of `N K` the best `count` classes as text, `value:index:label`."""
    import numpy as np

    best = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    rows = [[f"{row[k]:f}:{k}:{labels[k]}".encode() for k in order] for row, order in zip(logits, best, strict=True)]
    return np.array(rows, dtype=object)


def raw(array: NDArray[Any]) -> bytes:
    """As the wire has it: little-endian, and every text behind its length."""
    import numpy as np

    if array.dtype == object:
        return b"".join(len(text).to_bytes(4, "little") + text for text in array.ravel())
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def datatype_of(array: NDArray[Any]) -> str:
    return _word(array.dtype)


@cache  # NumPy makes the name of a type anew each time
def _word(dtype: Any) -> str:
    return "BYTES" if dtype.kind == "O" else DATATYPES[dtype.name]


def answers(
    outputs: Mapping[str, NDArray[Any]], wanted: Sequence[Wanted], labels: Sequence[str]
) -> list[tuple[Wanted, NDArray[Any]]]:
    """The outputs in the order in which they were asked for; a number for every image, of shape `N`, goes out as Triton would send
    it: `N 1`."""
    found = []
    for each in wanted:
        array = outputs[each.name]
        array = array if array.ndim > 1 else array[:, None]
        found.append((each, classified(array, each.classes, labels) if each.classes else array))
    return found


def timeout_of(parameters: Mapping[str, Any]) -> float | None:
    """Triton's request parameter `timeout`, in microseconds; 0 is none."""
    value = parameters.get("timeout", 0)
    if type(value) is not int or value < 0:
        raise bad(f"the parameter 'timeout' must be a number of microseconds, not {value!r:.80}")
    return min(value, LONGEST_US) / 1e6 or None


def bad(what: str) -> Refusal:
    return Refusal(Reason.BAD, what)
