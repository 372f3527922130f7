"""What a client sends: which model is asked for, tensors behind their JSON, uploads. Pure functions; NumPy only.

Shapes: `N` images, `H` `W` space, `C` channels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from ...errors import HubError
from ..tensors import DATATYPES, raw
from ..wire import HEADER_LENGTH

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK = 16  # images of one request; the server gathers requests into batches anyway
PREFER = "Kdzoo-Prefer"
BINARY = "application/octet-stream"


@dataclass(frozen=True)
class Request:
    """What is asked. `path`: behind the address, quoted, with its query. `content`: the body, made when its turn comes. `about`:
    what messages call it. `lenient`: a server that is not there is an answer, too, of status 0."""

    method: str
    path: str
    content: Callable[[], bytes] = bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    about: str = ""
    lenient: bool = False


@dataclass(frozen=True)
class Wish:
    """Which model is asked. `name` may be that of an entry; then `branch`, or a preference, picks one of its models."""

    name: str
    branch: str | None = None
    prefer: str | None = None

    def path(self, verb: str = "", **query: object) -> str:
        given = {**query, **({"branch": self.branch} if self.branch is not None else {})}
        return f"/v2/models/{quote(self.name, safe='')}{verb}{'?' + urlencode(given) if given else ''}"

    def get(self, verb: str = "") -> Request:
        return Request("GET", self.path(verb))

    def infer(self, taken: Input, images: Sequence[NDArray[Any]] | NDArray[Any], classes: int = 0) -> Request:
        """All outputs as raw tensors, or, of so many best `classes`, the logits with their labels. The pixels are copied when it is
        the request's turn: many images are in memory once."""
        head = infer_head(taken, (len(images), *images[0].shape), images[0].dtype, classes)
        headers = {**self._headers, "Content-Type": BINARY, HEADER_LENGTH: str(len(head))}
        return Request("POST", self.path("/infer"), lambda: b"".join((head, *map(raw, images))), headers)

    def classify(self, content: Callable[[], bytes], top: int, about: str) -> Request:
        return Request("POST", self.path("/classify", top=top), content, {**self._headers, "Content-Type": BINARY}, about)

    @property
    def _headers(self) -> dict[str, str]:
        return {PREFER: self.prefer} if self.prefer is not None else {}


def infer_head(taken: Input, shape: tuple[int, ...], dtype: np.dtype[Any], classes: int = 0) -> bytes:
    """The JSON of an inference, which raw pixels follow."""
    described = {
        "name": taken.name,
        "datatype": DATATYPES[dtype.name],
        "shape": shape,
        "parameters": {"binary_data_size": prod(shape) * dtype.itemsize},
    }
    document: dict[str, Any] = {"inputs": [described]}
    if classes:
        document["outputs"] = [{"name": taken.output, "parameters": {"classification": classes}}]
    else:
        document["parameters"] = {"binary_data_output": True}
    return json.dumps(document, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Input:
    """What a model reads. `sides`: without the batch. `output`: which holds the logits. `num_classes`: that they are of, 0 where it
    does not tell. `chunk`: the most images for one request."""

    name: str
    datatype: str
    sides: tuple[int, ...]
    output: str
    num_classes: int
    chunk: int

    @classmethod
    def of(cls, metadata: dict[str, Any], max_batch: int | None) -> Input:
        """Raises `HubError` where the metadata are not those of a model of images."""
        try:
            (tensor,) = metadata["inputs"]
            batch, *sides = tensor["shape"]
            outputs = {each["name"]: each["shape"] for each in metadata["outputs"]}
            output = "logits" if "logits" in outputs else next(iter(outputs))
            most = min(CHUNK, max_batch or CHUNK, batch if batch > 0 else CHUNK)
            sides, count = tuple(map(int, sides)), max(0, int(outputs[output][-1]))
            return cls(str(tensor["name"]), str(tensor["datatype"]), sides, output, count, most)
        except (KeyError, TypeError, ValueError, IndexError, StopIteration) as error:
            raise HubError(
                f"the model takes or gives something else than images and logits: {type(error).__name__} {error!s:.100}"
            ) from None

    def fits(self, sides: tuple[int, ...]) -> bool:
        """Whether an image of these sides can go in as it is."""
        return len(sides) == len(self.sides) and all(want in (-1, side) for side, want in zip(sides, self.sides, strict=True))
