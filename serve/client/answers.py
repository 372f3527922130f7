"""What a client reads from the answers of a server: tensors, predictions, and which error a status is. NumPy only.

Shapes: `N` images, `K` classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from ...errors import HubError, KdzooError, UsageError
from ..tensors import DATATYPES
from ..wire import HEADER_LENGTH

if TYPE_CHECKING:
    from numpy.typing import NDArray

LATER = (429, 503)  # come back later
DTYPES = {word: name for name, word in DATATYPES.items()}


@dataclass(frozen=True)
class Answer:
    """`headers`: their names in small letters."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def is_good(self) -> bool:
        return self.status == 200

    @property
    def sentence(self) -> str:
        """Why it is refused, as the server says it."""
        try:
            document = json.loads(self.body)
            text = document["error"] if isinstance(document, dict) else ""
        except (ValueError, KeyError):
            text = self.body.decode("utf-8", "replace").strip() if b"<" not in self.body else ""
        return f"{text!s:.500}" or f"status {self.status}"


@dataclass(frozen=True)
class Class:
    """One class of an image: its label, its place in the logits, and how sure the model is of it, 0 to 1."""

    name: str
    index: int
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image: its best classes, the likeliest first. `exit`: of a cascade, the exit it left at."""

    classes: tuple[Class, ...]
    model: str
    exit: int | None = None

    @property
    def best(self) -> Class:
        return self.classes[0]


@dataclass(frozen=True)
class ServedModel:
    """A model of a server. `entry`, `target` and the `card` with its figures are told by kdzoo's own server only."""

    name: str
    ready: bool
    entry: str | None = None
    target: str | None = None
    card: Mapping[str, Any] = field(default_factory=dict)


def error_of(answer: Answer, about: str = "") -> KdzooError:
    """The error that a refusal is; `about` names what it is about."""
    status, text = answer.status, answer.sentence
    what = f"{about}: {text}" if about else f"the server says: {text}"
    if status in (401, 403):
        return HubError(what, hint="give the token that the server was started with")
    if status in LATER:
        return HubError(what, hint="try it again later, or with fewer requests at once")
    if 300 <= status < 400:
        return UsageError(
            f"the server is elsewhere: {answer.headers.get('location', 'it does not say where')}", hint="give that address"
        )
    if status in (408, 504):
        return HubError(what, hint="give it more time")
    return UsageError(what) if 400 <= status < 500 else HubError(f"the server failed (status {status}): {text}")


def read_json(answer: Answer, kind: type) -> Any:
    """The document of a good answer, a `kind`; raises `HubError` where it is none."""
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, kind):
        raise _strange("what it sent is no such JSON")
    return document


def read_tensors(answer: Answer) -> tuple[str, dict[str, NDArray[Any]]]:
    """Who answered, and its outputs by name. Raises `HubError` where that cannot be read."""
    try:
        length = int(answer.headers.get(HEADER_LENGTH, len(answer.body)))
        document, rest = json.loads(answer.body[:length]), memoryview(answer.body)[length:]
        outputs, place = {}, 0
        for tensor in document["outputs"]:
            size = tensor.get("parameters", {}).get("binary_data_size")
            data = tensor["data"] if size is None else rest[place : place + size]
            place += size or 0
            outputs[tensor["name"]] = _array(data, tensor["datatype"], tensor["shape"], is_raw=size is not None)
        if place != len(rest):
            raise ValueError(f"{len(rest) - place} bytes are too many")
        return str(document["model_name"]), outputs
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _strange(f"its tensors cannot be read ({type(error).__name__}: {error!s:.200})") from None


def read_predictions(answer: Answer) -> list[Prediction]:
    """Of uploaded pictures. Raises `HubError` where that cannot be read."""
    document = read_json(answer, dict)
    try:
        return [predicted(each["classes"], str(document["model_name"]), each.get("exit")) for each in document["predictions"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _strange(f"its predictions cannot be read ({type(error).__name__}: {error!s:.200})") from None


def from_logits(answer: Answer, labels: Sequence[str], top: int) -> list[Prediction]:
    """The same of the logits of an inference."""
    from ..pictures import best

    model, outputs = read_tensors(answer)
    logits = logits_of(outputs)
    exits = outputs["exit"].ravel().tolist() if "exit" in outputs else [None] * len(logits)
    if logits.ndim != 2 or logits.shape[1] != len(labels) or len(exits) != len(logits):
        raise _strange(f"logits of shape {logits.shape} for {len(labels)} classes")
    return [predicted(classes, model, exit) for classes, exit in zip(best(logits, top, labels), exits, strict=True)]


def logits_of(outputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """The output of that name, or the only one."""
    if "logits" not in outputs and len(outputs) != 1:
        raise UsageError(f"the model gives {', '.join(outputs)}, none of which is 'logits'", hint="ask for one branch")
    return outputs["logits"] if "logits" in outputs else next(iter(outputs.values()))


def read_labels(answer: Answer, count: int) -> list[str]:
    """The labels in order, of one image that was classified into all `count` classes: each is told as `value:index:label`."""
    _, outputs = read_tensors(answer)
    found = dict[int, str]()
    for text in logits_of(outputs).ravel().tolist():
        _, _, rest = (text.decode() if isinstance(text, bytes) else str(text)).partition(":")
        index, _, label = rest.partition(":")
        if index.isdigit():
            found[int(index)] = label or index
    if sorted(found) != list(range(count)):
        raise _strange(f"it told {len(found)} labels of {count}")
    return [found[k] for k in range(count)]


def predicted(classes: Sequence[Mapping[str, Any]], model: str, exit: int | None) -> Prediction:
    found = tuple(Class(str(each["class"]), int(each["index"]), float(each["probability"])) for each in classes)
    return Prediction(found, model, None if exit is None else int(exit))


def _array(data: Any, word: str, shape: list[int], *, is_raw: bool) -> NDArray[Any]:
    import numpy as np

    if word == "BYTES":
        texts = list(_texts(bytes(data))) if is_raw else [str(each).encode() for each in data]
        return np.array(texts, dtype=object).reshape(shape)
    dtype = np.dtype(DTYPES[word])
    if not is_raw:
        return np.asarray(data, dtype).reshape(shape)
    if len(data) != prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(data)} bytes are no {word} of shape {shape}")
    return np.frombuffer(data, dtype.newbyteorder("<")).reshape(shape).astype(dtype)


def _texts(data: bytes) -> Any:
    """Every text of a raw tensor, behind its length."""
    place = 0
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "little")
        place += 4 + size
        if place > len(data):
            raise ValueError("a text is cut off")
        yield data[place - size : place]


def _strange(why: str) -> HubError:
    return HubError(f"the server does not answer as the Open Inference Protocol has it: {why}", hint="is this the right address?")
