"""MLServer (https://github.com/SeldonIO/MLServer): MODEL.onnx PORT.

MLServer speaks the Open Inference Protocol without its binary tensors: the pixels go as base64 in JSON, which costs it less than
numbers in JSON, and the logits come back so. Past its protocol, pixels and logits can also go as they are, through a handler of
one's own (/raw): little more of MLServer than its web framework is measured then. onnxruntime runs in two threads of the process
that speaks HTTP, each call with one intra-op thread, which the runtimes that come with MLServer do not do; with --workers, its own
processes compute, as it comes. Its adaptive batching brings nothing on a processor; httptools is more than it asks for, metrics are
off.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
from fastapi import Request, Response
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.handlers import custom_handler
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse


class Classifier(MLModel):  # type: ignore[misc]
    async def load(self) -> bool:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = 1, 1
        parameters = self.settings.parameters
        self.session = ort.InferenceSession(parameters.uri, options, providers=["CPUExecutionProvider"])
        self.given, self.made = self.session.get_inputs()[0], self.session.get_outputs()[0].name
        self.pool = ThreadPoolExecutor(parameters.extra["threads"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        given = payload.inputs[0]
        if given.datatype != "BYTES":
            logits = await self.compute(NumpyCodec.decode_input(given).tobytes())
            return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output(self.made, logits)])
        logits = await self.compute(b"".join(Base64Codec.decode_input(given)))
        rows = Base64Codec.encode_output(self.made, [row.tobytes() for row in logits])
        return InferenceResponse(model_name=self.name, outputs=[rows])

    @custom_handler(rest_path="/raw")  # type: ignore[untyped-decorator]
    async def raw(self, request: Request) -> Response:
        logits = await self.compute(await request.body())
        return Response(logits.tobytes(), media_type="application/octet-stream")

    async def compute(self, pixels: bytes) -> Any:
        images = np.frombuffer(pixels, np.uint8).reshape(-1, *self.given.shape[1:])
        run = self.session.run
        return (await asyncio.get_running_loop().run_in_executor(self.pool, run, [self.made], {self.given.name: images}))[0]


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("port", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        grpc_port = probe.getsockname()[1]
    settings = Settings(
        debug=False,
        host="127.0.0.1",
        http_port=args.port,
        grpc_port=grpc_port,
        metrics_endpoint=None,
        parallel_workers=args.workers,
    )
    parameters = ModelParameters(uri=args.model, extra={"threads": args.threads})
    await MLServer(settings).start([ModelSettings(name="model", implementation="with_mlserver.Classifier", parameters=parameters)])


if __name__ == "__main__":
    asyncio.run(main())
