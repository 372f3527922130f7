"""What the protocol tells of a server and its models: metadata, configuration, statistics, index. Plain data for HTTP and gRPC, in
the words of Triton. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import __version__
from .refusal import Reason, Refusal
from .tensors import DATATYPES

if TYPE_CHECKING:
    from ..export.tensor_spec import TensorSpec
    from .counters import Counters
    from .model import Model
    from .repository import Repository
    from .settings import Batching

VERSION = "1"  # of every model: a package is immutable, another one is another package
EXTENSIONS = ["binary_tensor_data", "classification", "statistics", "model_configuration", "model_repository", "kdzoo_classify"]


def check_version(name: str, version: str) -> None:
    if version not in ("", VERSION):
        raise Refusal(
            Reason.UNKNOWN, f"Request for unknown model: '{name}' version {version:.40} is not found; there is version {VERSION}"
        )


def server_metadata() -> dict[str, Any]:
    return {"name": "kdzoo", "version": __version__, "extensions": EXTENSIONS}


def model_metadata(model: Model) -> dict[str, Any]:
    """Names, types and shapes of what goes in and comes out; -1 is the batch."""

    def tensor(spec: TensorSpec) -> dict[str, Any]:
        return {
            "name": spec.name,
            "datatype": DATATYPES[spec.dtype],
            "shape": [*spec.shape, *([1] if len(spec.shape) == 1 else [])],
        }

    inputs, outputs = [tensor(model.input)], [tensor(output) for output in model.outputs]
    return {"name": model.name, "versions": [VERSION], "platform": model.platform, "inputs": inputs, "outputs": outputs}


def model_config(model: Model, batching: Batching) -> dict[str, Any]:
    """The configuration as Triton would have it for the same model."""

    def tensor(name: str, dtype: str, shape: tuple[int | str, ...]) -> dict[str, Any]:
        told = {"name": name, "data_type": f"TYPE_{DATATYPES[dtype]}", "dims": list(shape[1:]) or [1]}
        # Triton takes no tensor without dimensions: a number for every image, of shape `N`, is one that it reshapes.
        return told if shape[1:] else {**told, "reshape": {"shape": []}}

    wait_us = round(1e6 * batching.max_wait)
    return {
        "name": model.name,
        "platform": model.platform,
        "backend": model.chosen.runtime.name,
        "max_batch_size": model.batch[1],
        "input": [tensor(model.input.name, model.input.dtype, model.input.shape)],
        "output": [tensor(t.name, t.dtype, t.shape) for t in model.outputs],
        "dynamic_batching": {"max_queue_delay_microseconds": wait_us},
        "instance_group": [{"name": model.name, "kind": f"KIND_{model.chosen.device.upper()}", "count": len(model.sessions)}],
        "default_model_filename": model.chosen.artifact.path,
    }


def model_statistics(model: Model, counters: Counters) -> dict[str, Any]:
    """Counts and nanoseconds since the server started, in all its processes."""
    total = counters.total(model.name)
    answered = total["success"]

    def duration(name: str, count: int) -> dict[str, int]:
        return {"count": count, "ns": total[f"{name}_ns"]}

    parts = {name: duration(of, answered) for name, of in STEPS.items()}
    return {
        "name": model.name,
        "version": VERSION,
        "last_inference": total["last_ms"],
        "inference_count": total["images"],
        "execution_count": total["executions"],
        "inference_stats": {
            "success": duration("success", answered),
            "fail": duration("fail", total["fail"]),
            **parts,
            "cache_hit": {"count": 0, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": {"count": count, "ns": 0},
                "compute_infer": {"count": count, "ns": nanoseconds},
                "compute_output": {"count": count, "ns": 0},
            }
            for size, (count, nanoseconds) in sorted(total.batches.items())
        ],
    }


STEPS = {"queue": "queue", "compute_input": "input", "compute_infer": "infer", "compute_output": "output"}


def repository_index(repository: Repository) -> list[dict[str, str]]:
    return [
        {"name": m.name, "version": VERSION, "state": "READY" if m.ready else "UNAVAILABLE", "reason": m.failure}
        for m in repository.models
    ]


def model_card(model: Model) -> dict[str, Any]:
    """The figures of the served file, as its card has them."""
    artifact, metrics = model.chosen.artifact, model.metrics
    measured = metrics["artifacts"].get(artifact.path, {})
    document = model.package.document
    return {
        "name": model.name,
        **{key: document[key] for key in ("entry", "target", "method", "backbone", "dataset")},
        "file": artifact.path,
        "format": artifact.format,
        "precision": artifact.precision,
        "bytes": artifact.bytes,
        "sha256": artifact.sha256,
        "runtime": model.sessions[0].ran_on.runtime,
        "device": model.chosen.device,
        "accuracy": measured.get("accuracy"),
        "latency": measured.get("latency"),
        "host": metrics.get("host"),
        "params": metrics["student"].get("params"),
        "macs": metrics["student"].get("macs"),
        "classes": len(model.labels),
        "ready": model.ready,
    }
