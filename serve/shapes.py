"""What goes in and comes out over HTTP, as JSON Schema, for `schema`. Torch-free."""

from __future__ import annotations

from typing import Any

from .describe import VERSION
from .tensors import DATATYPES
from .wire import MOST_CLASSES

Shape = dict[str, Any]

TEXT: Shape = {"type": "string"}
WHOLE: Shape = {"type": "integer"}
COUNT: Shape = {"type": "integer", "minimum": 0}
NUMBER: Shape = {"type": "number"}
FLAG: Shape = {"type": "boolean"}
BYTES: Shape = {"type": "string", "format": "binary"}
DATATYPE: Shape = {"enum": [*DATATYPES.values(), "BYTES"]}


def record(properties: dict[str, Shape], optional: tuple[str, ...] = ()) -> Shape:
    """An object with these keys, all but the `optional` ones always there."""
    return {"type": "object", "properties": properties, "required": [key for key in properties if key not in optional]}


def several(items: Shape, **bounds: int) -> Shape:
    return {"type": "array", "items": items, **bounds}


def maybe(shape: Shape) -> Shape:
    """Or null."""
    return {"anyOf": [shape, {"type": "null"}]}


def named(name: str) -> Shape:
    return {"$ref": f"#/components/schemas/{name}"}


def _duration() -> Shape:
    return {**record({"count": COUNT, "ns": COUNT}), "description": "How often, and nanoseconds in all."}


def answers() -> dict[str, Shape]:
    """What the server says, by name."""
    duration = named("Duration")
    steps = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
    batch_steps = ("compute_input", "compute_infer", "compute_output")
    share = {**NUMBER, "minimum": 0, "maximum": 1}
    given = {"name": TEXT, "datatype": DATATYPE, "shape": several(COUNT)}
    tensor = record({"name": TEXT, "datatype": DATATYPE, "shape": several(WHOLE)})
    setting = record({"name": TEXT, "data_type": {**TEXT, "pattern": "^TYPE_"}, "dims": several(WHOLE)})
    return {
        "Error": {**record({"error": TEXT}), "description": "A sentence that says what is wrong."},
        "Server": record({"name": TEXT, "version": TEXT, "extensions": several(TEXT)}),
        "Tensor": {**tensor, "description": "-1 in the shape stands for the number of images."},
        "Metadata": record(
            {
                "name": TEXT, "versions": several({"const": VERSION}), "platform": TEXT,
                "inputs": several(named("Tensor")), "outputs": several(named("Tensor")),
            }
        ),
        "Config": record(
            {
                "name": TEXT, "platform": TEXT, "backend": TEXT, "max_batch_size": COUNT,
                "input": several(setting), "output": several(setting),
                "dynamic_batching": record({"max_queue_delay_microseconds": COUNT}),
                "instance_group": several(record({"name": TEXT, "kind": {"enum": ["KIND_CPU", "KIND_GPU"]}, "count": COUNT})),
                "default_model_filename": TEXT,
            }
        ),
        "Duration": _duration(),
        "Statistics": record(
            {
                "model_stats": several(
                    record(
                        {
                            "name": TEXT, "version": TEXT, "last_inference": {**COUNT, "description": "Unix time, ms."},
                            "inference_count": COUNT, "execution_count": COUNT,
                            "inference_stats": record(dict.fromkeys(steps, duration)),
                            "batch_stats": several(record({"batch_size": COUNT, **dict.fromkeys(batch_steps, duration)})),
                        }
                    )
                )
            }
        ),
        "Index": several(
            record({"name": TEXT, "version": TEXT, "state": {"enum": ["READY", "UNAVAILABLE"]}, "reason": TEXT})
        ),
        "Cards": several(
            record(
                {
                    **dict.fromkeys(("name", "entry", "target", "method", "backbone", "dataset"), TEXT),
                    **dict.fromkeys(("file", "format", "precision", "sha256", "runtime"), TEXT),
                    "bytes": COUNT, "device": {"enum": ["cpu", "gpu"]}, "classes": COUNT, "ready": FLAG,
                    "accuracy": maybe({"type": "object"}), "latency": maybe(several({"type": "object"})), "host": maybe(TEXT),
                    "params": maybe(COUNT), "macs": maybe(COUNT),
                }
            )
        ),
        "Predictions": record(
            {
                "model_name": TEXT, "target": TEXT, "decode_ms": NUMBER, "infer_ms": NUMBER,
                "predictions": several(
                    record(
                        {
                            "image": TEXT,
                            "classes": several(record({"class": TEXT, "index": COUNT, "probability": share})),
                            "exit": {**COUNT, "description": "Of a cascade: the exit that was sure, from 1."},
                        },
                        optional=("exit",),
                    )
                ),
            }
        ),
        "InferAnswer": record(
            {
                "model_name": TEXT, "model_version": TEXT, "id": TEXT,
                "outputs": several(
                    record(
                        {**given, "data": {"type": "array"}, "parameters": {"type": "object"}},
                        optional=("data", "parameters"),
                    )
                ),
            },
            optional=("id",),
        ),
    }  # fmt: skip


def numbers(datatypes: set[str]) -> Shape:
    """Flat or nested, as the data types allow."""
    leaf = NUMBER if any(each.startswith("FP") for each in datatypes) else WHOLE
    bounded = {**leaf, "minimum": 0, "maximum": 255} if datatypes == {"UINT8"} else leaf
    return several({"anyOf": [bounded, named("Numbers")]})


def questions(inputs: set[str], datatypes: set[str], outputs: set[str], max_batch: int) -> dict[str, Shape]:
    """What clients send, for the tensors of the models that are served."""
    given = record(
        {
            "name": {"enum": sorted(inputs)},
            "datatype": {"enum": sorted(datatypes)},
            "shape": {
                **several(COUNT, minItems=1),
                "description": f"Of one image with the number of images before it, up to {max_batch}.",
            },
            "data": {**named("Numbers"), "description": "Left out where raw bytes follow the JSON."},
            "parameters": {
                **record(
                    {"binary_data_size": {**COUNT, "description": "Raw bytes of this input, behind the JSON."}},
                    ("binary_data_size",),
                )
            },
        },
        optional=("data", "parameters"),
    )
    wanted_how = {
        "binary_data": {**FLAG, "description": "Raw bytes behind the JSON."},
        "classification": {**COUNT, "maximum": MOST_CLASSES, "description": "So many best classes, as value:index:label."},
    }
    wanted = record(
        {"name": {"enum": sorted(outputs)}, "parameters": record(wanted_how, tuple(wanted_how))}, optional=("parameters",)
    )
    how = {
        "timeout": {**COUNT, "description": "Microseconds; 0 is none."},
        "binary_data_output": {**FLAG, "description": "All outputs as raw bytes."},
    }
    return {
        "Numbers": numbers(datatypes),
        "InferQuestion": record(
            {
                "id": {**TEXT, "description": "Comes back in the answer."},
                "parameters": record(how, tuple(how)),
                "inputs": several(given, minItems=1, maxItems=1),
                "outputs": {**several(wanted), "description": "All of them where none is named."},
            },
            optional=("id", "parameters", "outputs"),
        ),
    }
