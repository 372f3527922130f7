"""LitServe (https://github.com/Lightning-AI/LitServe): MODEL.onnx PORT.

A worker is a process that computes, with one intra-op thread; a server is a process that speaks HTTP. A request is nothing but the
pixels, its answer nothing but the logits: LitServe has no protocol for tensors, and its JSON would be slower. A batch
gathers for two milliseconds. The fast queue is that of ZeroMQ, instead of that of multiprocessing.
"""

import argparse
from typing import Annotated, Any

import litserve
import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
from fastapi import Body, Response

GATHER = 0.002  # seconds


class Classifier(litserve.LitAPI):  # type: ignore[misc]
    model: str

    def setup(self, device: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = 1, 1
        self.session = ort.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])
        self.given, self.made = self.session.get_inputs()[0], self.session.get_outputs()[0].name

    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> Any:
        return np.frombuffer(request, np.uint8).reshape(self.given.shape[1:])

    def predict(self, images: Any) -> Any:
        if self.max_batch_size == 1:
            return self.session.run([self.made], {self.given.name: images[None]})[0][0]
        return self.session.run([self.made], {self.given.name: images})[0]

    def encode_response(self, logits: Any) -> Response:
        return Response(logits.tobytes(), media_type="application/octet-stream")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("port", type=int)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--fast-queue", action="store_true")
    args = parser.parse_args()
    classifier = Classifier(max_batch_size=args.batch, batch_timeout=GATHER if args.batch > 1 else 0.0)
    classifier.model = args.model
    server = litserve.LitServer(classifier, accelerator="cpu", workers_per_device=args.workers, fast_queue=args.fast_queue)
    server.run(
        host="127.0.0.1",
        port=args.port,
        num_api_servers=args.servers,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )


if __name__ == "__main__":
    main()
