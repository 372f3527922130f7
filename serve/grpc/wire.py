"""Messages of inference over gRPC: what is asked, and the answer. NumPy and protobuf only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..describe import VERSION
from ..tensors import Given, InferRequest, Wanted, answers, bad, check_wanted, datatype_of, raw, timeout_of, to_images
from ..wire import read_wanted
from .messages import CHOICE, CLASSES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..model import Model

CONTENTS = {  # where the numbers of a data type stand in a message; those of half precision are raw bytes only
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
SHARED_MEMORY = "shared_memory_region"
FINAL = "triton_final_response"


def read_request(model: Model, message: Any) -> InferRequest:
    """A request, of a `ModelInferRequest`.

    Raises:
        Refusal: a sentence that says what is wrong.
    """
    raws = message.raw_input_contents
    if raws and len(raws) != len(message.inputs):
        raise bad(f"there are {len(raws)} raw input contents for {len(message.inputs)} inputs of model '{model.name}'")
    given = []
    for number, tensor in enumerate(message.inputs):
        _refuse_shared_memory(f"inference input '{tensor.name}'", tensor.parameters)
        if raws and tensor.HasField("contents"):
            raise bad(f"contents must not be given with raw input contents, for input '{tensor.name}' of model '{model.name}'")
        data = raws[number] if raws else _contents(tensor)
        given.append(Given(tensor.name, tensor.datatype, list(tensor.shape), data))
    images = to_images(model, given)
    wanted = []
    for output in message.outputs:
        _refuse_shared_memory(f"inference output '{output.name}'", output.parameters)
        wanted.append(read_wanted({"name": output.name, "parameters": plain(output.parameters)}, True))
    wanted = wanted or [Wanted(output.name, binary=True) for output in model.outputs]
    return InferRequest(images, check_wanted(model, wanted), message.id, timeout_of(plain(message.parameters)))


def write_response(model: Model, request: InferRequest, outputs: Mapping[str, NDArray[Any]]) -> Any:
    """A `ModelInferResponse`, with raw bytes as Triton sends them."""
    response = CLASSES["ModelInferResponse"](model_name=model.name, model_version=VERSION, id=request.id)
    for wanted, array in answers(outputs, request.wanted, model.labels):
        response.outputs.add(name=wanted.name, datatype=datatype_of(array), shape=array.shape)
        response.raw_output_contents.append(raw(array))
    return response


def plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as values of Python; None for one that holds nothing."""
    kinds = {key: parameter.WhichOneof(CHOICE) for key, parameter in parameters.items()}
    return {key: getattr(parameters[key], kind) if kind else None for key, kind in kinds.items()}


def text_of(parameters: Mapping[str, Any], name: str) -> str | None:
    """A request parameter that holds a text, or None."""
    value = parameters.get(name)
    if not isinstance(value, str | None):
        raise bad(f"the parameter '{name}' must be a text, not {value!r:.80}")
    return value


def _contents(tensor: Any) -> Any:
    """The numbers of an input; none, where its data type has no place for them."""
    field = CONTENTS.get(tensor.datatype)
    numbers = getattr(tensor.contents, field) if field else ()
    if field and not len(numbers):
        raise bad(f"inference input '{tensor.name}' holds no data: raw_input_contents is empty, and so is its {field}")
    return numbers


def _refuse_shared_memory(what: str, parameters: Mapping[str, Any]) -> None:
    if SHARED_MEMORY in parameters:
        raise bad(f"{what} is in shared memory, which this server does not read or write; send the bytes")
