"""Bodies of inference over HTTP: JSON, and JSON with raw tensors behind it (the binary tensor data extension). NumPy only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any

from .tensors import DATATYPES, Given, InferRequest, Wanted, answers, bad, check_wanted, datatype_of, raw, timeout_of, to_images

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .model import Model

HEADER_LENGTH = "inference-header-content-length"
MOST_CLASSES = 1000
LONGEST_KNOWN, MOST_KNOWN = 1024, 256  # bytes of JSON that is kept, and how many


def read_request(model: Model, body: bytes, header: str | None) -> InferRequest:
    """A request; `header` is the value of `HEADER_LENGTH`, the bytes of the JSON that raw tensors follow. 0: the body is the raw
    bytes of the only input, as many images as that makes.

    Raises:
        Refusal: a sentence that says what is wrong.
    """
    length = _length(header, len(body))
    if length == 0:
        return InferRequest(_bare(model, body), [Wanted(output.name, binary=True) for output in model.outputs])
    document = _document(body[:length])
    parameters = _parameters(document, "the request")
    rest = memoryview(body)[length:]
    given, place = [], 0
    for tensor in _objects(document, "inputs"):
        size = _parameters(tensor, f"inference input '{_name(tensor)}'").get("binary_data_size")
        if size is None:
            if "data" not in tensor:
                raise bad(f"inference input '{_name(tensor)}' holds no data")
            data = tensor["data"]
        else:
            if type(size) is not int or not 0 <= size <= len(rest) - place:
                raise bad(
                    f"unexpected size {size!r:.40} for input '{_name(tensor)}': {len(rest) - place} bytes are left in the body"
                )
            data, place = rest[place : place + size], place + size
        given.append(Given(_name(tensor), tensor.get("datatype", ""), tensor.get("shape", ()), data))
    if place != len(rest):
        raise bad(f"unexpected additional input data: {len(rest) - place} bytes behind the last input")
    images = to_images(model, given)
    binary = _flag(parameters, "binary_data_output", False)
    wanted = [read_wanted(output, binary) for output in _objects(document, "outputs")] if "outputs" in document else []
    wanted = wanted or [Wanted(output.name, binary) for output in model.outputs]
    return InferRequest(images, check_wanted(model, wanted), _id(document), timeout_of(parameters))


class Reader:
    """Reads the requests of one model. JSON that raw tensors follow is mostly what the last request said: it is read once."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.known: dict[tuple[bytes, int], InferRequest] = {}  # by the JSON, and the length of the whole body

    def read(self, body: bytes, header: str | None) -> InferRequest:
        """What `read_request` gives."""
        import numpy as np

        length = _length(header, len(body))
        if not 0 < length < min(len(body), LONGEST_KNOWN):
            return read_request(self.model, body, header)
        key = (body[:length], len(body))
        known = self.known.get(key)
        if known is None:
            request = read_request(self.model, body, header)
            if len(self.known) >= MOST_KNOWN:
                del self.known[next(iter(self.known))]
            self.known[key] = replace(request, images=np.broadcast_to(request.images.dtype.type(), request.images.shape))
            return request
        images = np.frombuffer(body, known.images.dtype, offset=length).reshape(known.images.shape)
        return InferRequest(images, known.wanted, known.id, known.timeout)


def read_parameters(body: bytes) -> dict[str, Any]:
    """Of a request that holds nothing else."""
    return _parameters(_document(body), "the request")


def write_response(model: Model, request: InferRequest, outputs: Mapping[str, NDArray[Any]]) -> tuple[bytes, int | None]:
    """The body, and how many bytes of it are JSON where raw tensors follow."""
    pieces, described = [], []
    for wanted, array in answers(outputs, request.wanted, model.labels):
        data: Any = None
        if wanted.binary:
            pieces.append(raw(array))
        elif array.dtype == object:
            data = [text.decode() for text in array.ravel()]
        else:
            data = array.ravel().tolist()
        described.append((wanted.name, datatype_of(array), array.shape, len(pieces[-1]) if wanted.binary else None, data))
    is_raw = len(pieces) == len(described)
    head = (_raw_document if is_raw else _answer_document)(model.name, request.id, tuple(described))
    return (b"".join((head, *pieces)), len(head)) if pieces else (head, None)


def _answer_document(name: str, id: str, outputs: Sequence[tuple[str, str, tuple[int, ...], int | None, Any]]) -> bytes:
    """The JSON of an answer; of each output name, data type, shape, and the size of its raw bytes or its numbers."""
    described: list[dict[str, Any]] = []
    for output, datatype, shape, size, data in outputs:
        rest = {"data": data} if size is None else {"parameters": {"binary_data_size": size}}
        described.append({"name": output, "datatype": datatype, "shape": shape, **rest})
    document = {"model_name": name, "model_version": "1", "outputs": described, **({"id": id} if id else {})}
    return json.dumps(document, separators=(",", ":")).encode()


_raw_document = lru_cache(MOST_KNOWN)(_answer_document)  # the same for most answers


def _document(text: bytes) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise bad(f"failed to parse the request JSON: {error!s:.200}") from None
    if not isinstance(document, dict):
        raise bad("the request JSON must be an object")
    return document


def _bare(model: Model, body: bytes) -> NDArray[Any]:
    """As many images as the bytes make."""
    import numpy as np

    spec = model.input
    sides = [int(side) for side in spec.shape[1:]]
    size = prod(sides) * np.dtype(spec.dtype).itemsize
    if not body or len(body) % size:
        raise bad(f"a raw body for model '{model.name}' has {size} bytes for each image, not {len(body)} in all")
    return to_images(model, [Given(spec.name, DATATYPES[spec.dtype], [len(body) // size, *sides], body)])


def _length(header: str | None, whole: int) -> int:
    if header is None:
        return whole or 1  # an empty body is no JSON
    if not header.isascii() or not header.isdigit() or not 0 <= int(header[:20]) <= whole:
        raise bad(f"Inference-Header-Content-Length must be a number of bytes of the body, which has {whole}, not {header!r:.40}")
    return int(header)


def _objects(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = document.get(key)
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise bad(f"'{key}' must be a list of objects, each with a name")
    return found


def _parameters(document: dict[str, Any], of: str) -> dict[str, Any]:
    found = document.get("parameters", {})
    if not isinstance(found, dict):
        raise bad(f"the parameters of {of} must be an object")
    return found


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    found = parameters.get(name, default)
    if not isinstance(found, bool):
        raise bad(f"the parameter '{name}' must be true or false, not {found!r:.80}")
    return found


def _name(tensor: dict[str, Any]) -> str:
    name = tensor.get("name")
    if not isinstance(name, str):
        raise bad(f"a tensor needs a name, not {name!r:.80}")
    return name


def _id(document: dict[str, Any]) -> str:
    found = document.get("id", "")
    if not isinstance(found, str):
        raise bad("the id of a request must be a text")
    return found


def read_wanted(output: dict[str, Any], binary: bool) -> Wanted:
    """An output that is asked for; `binary`, unless it says something else itself."""
    parameters = _parameters(output, f"inference output '{_name(output)}'")
    classes = parameters.get("classification", 0)
    if type(classes) is not int or not 0 <= classes <= MOST_CLASSES:
        raise bad(f"the parameter 'classification' must be a number of classes, not {classes!r:.80}")
    return Wanted(_name(output), _flag(parameters, "binary_data", binary), classes)
