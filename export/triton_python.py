"""An ONNX file, or the parts of a cascade, in Triton's Python backend. It needs NumPy and onnxruntime, and nothing of kdzoo: a copy
of it lies in the repository that kdzoo writes.

Requests that Triton has gathered are computed as one batch; where a file has a fixed batch, it is filled up.

Shapes: `N` images, `K` classes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # from 1.29 on it tells its maker of every session that is opened
import onnxruntime


class File:
    """An ONNX file that takes arrays by name and gives arrays by name, as the driver of a cascade calls it."""

    def __init__(self, path: Path, threads: int, provider: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other instances want the processor
        self.session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
        if self.session.get_providers()[0] != provider:
            raise RuntimeError(f"{path.name} was to run on {provider}; onnxruntime took {self.session.get_providers()[0]}")
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]

    def __call__(self, known: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(self.outputs, self.session.run(self.outputs, known)))  # noqa: B905  # Python 3.9 knows no `strict`


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args: dict[str, str]) -> None:
        import triton_python_backend_utils

        self.triton: Any = triton_python_backend_utils
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        folder, threads = Path(args["model_repository"]) / args["model_version"], int(parameters.get("threads", "1"))
        provider = "CUDAExecutionProvider" if args["model_instance_kind"] == "GPU" else "CPUExecutionProvider"
        self.outputs = [output["name"] for output in config["output"]]
        self.fixed_batch = int(parameters.get("fixed_batch", "0"))
        listed = parameters["file"]
        if listed.endswith(".json"):
            document = json.loads((folder / listed).read_text(encoding="utf-8"))
            self.files = [File(folder / part["path"], threads, provider) for part in document["parts"]]
            self.thresholds = document["thresholds"]
        else:
            self.files, self.thresholds = [File(folder / listed, threads, provider)], None
        self.input = self.files[0].inputs[0]

    def execute(self, requests: list[Any]) -> list[Any]:
        images = [self.triton.get_input_tensor_by_name(request, self.input).as_numpy() for request in requests]
        try:
            found = self.compute(images[0] if len(images) == 1 else np.concatenate(images))
        except Exception as error:  # onnxruntime has a class for each of its codes, and none above them; every request is told
            failed = self.triton.TritonError(f"the file could not be computed: {error}")
            return [self.triton.InferenceResponse(output_tensors=[], error=failed) for _ in requests]
        responses, start = [], 0
        for own in images:
            end = start + len(own)
            tensors = [self.triton.Tensor(name, np.ascontiguousarray(found[name][start:end])) for name in self.outputs]
            responses.append(self.triton.InferenceResponse(output_tensors=tensors))
            start = end
        return responses

    def compute(self, images: Any) -> dict[str, Any]:
        """All outputs of a batch: logits float32 `N K`, and the exits int64 `N` of a cascade."""
        count = len(images)
        if self.fixed_batch > count:
            images = np.resize(images, (self.fixed_batch, *images.shape[1:]))
        if self.thresholds is not None:
            from cascade_driver import run_cascade  # lies beside this file

            logits, exits = run_cascade(self.files, self.thresholds, images)
            found = {"logits": logits, "exit": exits}
        else:
            found = self.files[0]({self.input: images})
        return {name: array[:count] for name, array in found.items()}
