"""onnxruntime without a server, image by image: MODEL.onnx SECONDS. Prints JSON: images per second, the median call, and
what an image takes of the processor, in ms.

two_threads  one caller, two threads inside of a call: the bar of the server
two_callers  two callers at the same time, one thread inside of each call: the harder bar
one_thread   one caller, one thread inside of the call: what a request to our server waits for when it is alone
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from typing import Any

import numpy as np
import onnxruntime as ort

WARM_UP = 30  # calls


def main() -> None:
    model, seconds = sys.argv[1], float(sys.argv[2])
    results = {}
    for name, threads, callers in (("two_threads", 2, 1), ("two_callers", 1, 2), ("one_thread", 1, 1)):
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        times, cpu = measure(session, callers, seconds)
        results[name] = {
            "images_s": round(len(times) / seconds, 1),
            "p50_ms": round(1000 * statistics.median(times), 4),
            "cpu_ms": round(1000 * cpu / len(times), 4),
        }
        del session  # and its threads
    print(json.dumps(results))


def measure(session: ort.InferenceSession, callers: int, seconds: float) -> tuple[list[float], float]:
    """Seconds of every call that began in time, and of the processor for all of them."""
    given, made = session.get_inputs()[0], session.get_outputs()[0].name
    image = {given.name: np.random.default_rng(0).integers(0, 256, (1, *given.shape[1:]), np.uint8)}
    for _ in range(WARM_UP):
        session.run([made], image)
    times: list[float] = []

    def call(until: float) -> None:
        began = time.perf_counter()
        while began < until:
            session.run([made], image)
            ended = time.perf_counter()
            times.append(ended - began)
            began = ended

    until, cpu = time.perf_counter() + seconds, time.process_time()
    threads: list[Any] = [threading.Thread(target=call, args=(until,)) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, time.process_time() - cpu


if __name__ == "__main__":
    main()
