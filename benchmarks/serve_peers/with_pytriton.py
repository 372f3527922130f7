"""PyTriton (https://github.com/triton-inference-server/pytriton): MODEL.onnx PORT.

Triton's own HTTP front with two threads and its dynamic batching without a delay; its callables run in this process, in a thread
for each instance, so two instances with one intra-op thread each keep both processors busy, as in our server. Requests are those
of ours: Open Inference Protocol with binary tensors. What nobody asks (gRPC, metrics) is off.
"""

from __future__ import annotations

import argparse
import os
import sysconfig
from typing import Any

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

# Triton's stub loads a libpython by name; it must be that of the standard library that it will find.
os.environ["LD_LIBRARY_PATH"] = sysconfig.get_config_var("LIBDIR")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("port", type=int)
    parser.add_argument("--instances", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = 1, 1
    session = ort.InferenceSession(args.model, options, providers=["CPUExecutionProvider"])
    given, made = session.get_inputs()[0], session.get_outputs()[0]

    @batch
    def infer(**inputs: Any) -> dict[str, Any]:
        return {made.name: session.run([made.name], inputs)[0]}

    config = TritonConfig(http_address="127.0.0.1", http_port=args.port, http_thread_count=2, allow_grpc=False, allow_metrics=False)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="model",
            infer_func=[infer] * args.instances,
            inputs=[Tensor(name=given.name, dtype=np.uint8, shape=tuple(given.shape[1:]))],
            outputs=[Tensor(name=made.name, dtype=np.float32, shape=tuple(made.shape[1:]))],
            config=ModelConfig(max_batch_size=args.batch, batcher=DynamicBatcher()),
        )
        triton.serve()


if __name__ == "__main__":
    main()
