"""`config.pbtxt` of a Triton model: the configuration as plain data, and its text in the format of Protocol Buffers. Torch-free.

https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_configuration.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .cascade import EXIT
from .package import Artifact

CPU, GPU = "cpu", "gpu"
TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32", "float16": "TYPE_FP16", "int64": "TYPE_INT64"}
LABELS = "labels.txt"
WARM_UP, GOLDEN = "warmup", "golden"  # the folder that Triton looks into, and the file there: one image, which it repeats
FILES = {"onnxruntime": "model.onnx", "tensorrt": "model.plan", "python": "model.py"}  # in the folder of the version
MAX_QUEUE, TIMEOUT_US = 256, 30_000_000  # requests that wait, and for how long, as in `kdzoo serve`
MAX_DELAY_US = {CPU: 0, GPU: 500}  # on a processor a batch gains little, on a GPU it is everything

Message = Mapping[str, Any]


class Word(str):
    """An enumerator: it is written without quotes."""

    __slots__ = ()


@dataclass(frozen=True)
class Place:
    """Where a model runs: the `backend` that loads it, `cpu` or `gpu`, and how many `instances` compute at the same time."""

    backend: str
    device: str = CPU
    instances: int = 1


def configuration(name: str, artifact: Artifact, outputs: Sequence[str], place: Place, parameters: Mapping[str, str]) -> Message:
    """What Triton has to know of a file.

    Where the batch is fixed it is a dimension like any other, and Triton gathers nothing; but the Python backend fills it up.
    """
    smallest, optimal, largest = artifact.batch
    is_open = smallest != largest or place.backend == "python"
    batch = [] if is_open else [smallest]
    sides = [int(side) for side in artifact.input.shape[1:]]
    image = {"data_type": Word(TYPES[artifact.input.dtype]), "dims": batch + sides}
    config: dict[str, Any] = {
        "name": name,
        "backend": place.backend,
        "default_model_filename": FILES[place.backend],
        "max_batch_size": largest if is_open else 0,
        "version_policy": {"latest": {"num_versions": 1}},
        "input": [{"name": artifact.input.name, **image}],
        "output": [output(each, artifact, batch) for each in outputs],
        "instance_group": [{"kind": Word(f"KIND_{place.device.upper()}"), "count": place.instances}],
    }
    if is_open:
        config["dynamic_batching"] = {
            "preferred_batch_size": sorted({optimal, largest} - {1}),
            "max_queue_delay_microseconds": MAX_DELAY_US[place.device],
            "default_queue_policy": {
                "timeout_action": Word("REJECT"),
                "default_timeout_microseconds": TIMEOUT_US,
                "allow_timeout_override": True,
                "max_queue_size": MAX_QUEUE,
            },
        }
    config["parameters"] = [{"key": key, "value": {"string_value": value}} for key, value in parameters.items()]
    config["model_warmup"] = [
        {
            "name": f"golden_{size}",
            "batch_size": size if is_open else 1,
            "count": 1,
            "inputs": [{"key": artifact.input.name, "value": {**image, "input_data_file": GOLDEN}}],
        }
        for size in (sorted({1, optimal, largest}) if is_open else [smallest])
    ]
    return config


def output(name: str, artifact: Artifact, batch: list[int]) -> Message:
    """Logits with their labels; or the exit of every image, which Triton, that takes no tensor without dimensions, has as `N 1`."""
    if name == EXIT:
        described: dict[str, Any] = {"name": name, "data_type": Word("TYPE_INT64"), "dims": batch or [1]}
        return described if batch else {**described, "reshape": {"shape": []}}
    classes = [int(side) for side in artifact.output.shape[1:]]
    return {"name": name, "data_type": Word(TYPES[artifact.output.dtype]), "dims": batch + classes, "label_filename": LABELS}


def to_text(message: Message, comments: Sequence[str] = ()) -> str:
    """A message in the text format, `comments` first."""
    return "".join(f"{line}\n" for line in (*(f"# {comment}" for comment in comments), *_lines(message, "")))


def _lines(message: Message, indent: str) -> list[str]:
    lines = []
    for key, value in message.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            for each in value:
                lines += _block(key, each, indent)
        elif isinstance(value, Mapping):
            lines += _block(key, value, indent)
        elif isinstance(value, list):
            lines.append(f"{indent}{key}: [{', '.join(map(_scalar, value))}]")
        else:
            lines.append(f"{indent}{key}: {_scalar(value)}")
    return lines


def _block(key: str, message: Message, indent: str) -> list[str]:
    return [f"{indent}{key} {{", *_lines(message, indent + "  "), f"{indent}}}"]


def _scalar(value: object) -> str:
    """Strings as JSON quotes them, which Protocol Buffers read, too."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, Word) else json.dumps(value, ensure_ascii=False)
