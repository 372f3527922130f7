"""The servers that `serve.py` compares: how each of them is started, asked and read, and what it takes of the machine."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPMessage
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdzoo.export.package import Artifact, Package

# What a virtual environment of each is made of, besides the onnxruntime of ours. uvicorn is faster where it finds httptools; with
# newer uvloops the processes of MLServer do not start.
PEERS = {
    "pytriton": ("nvidia-pytriton==0.7.0",),
    "litserve": ("litserve==0.2.19",),
    "mlserver": ("mlserver==1.7.1", "httptools", "uvloop<0.22"),
}
OTHER_WAYS = {
    "pytriton": ("--instances 1", "--batch 8"),
    "litserve": ("--workers 2", "--workers 2 --servers 2 --batch 1", "--workers 2 --fast-queue"),
    "mlserver": ("--threads 1", "--threads 1 --workers 2"),
}
SCRIPTS = Path(__file__).resolve().parent / "serve_peers"
PATIENCE = 60.0  # seconds in which a server must answer
FAREWELL = 15.0  # seconds in which it must end

Body = tuple[bytes, dict[str, str]]


class Failed(Exception):
    """A server does not start or does not answer; with the last lines that it wrote."""


@dataclass(frozen=True)
class Side:
    """A server. `command`: its words; PORT stands for the port. `encode`: body and headers of a request, of images `N H W C`;
    `decode`: the logits `N K`, of headers and body of an answer. `about`: what is sent to it. `is_other_way`: it was tried."""

    name: str
    command: tuple[str, ...]
    ready: str
    infer: str
    encode: Callable[[NDArray[np.uint8]], Body]
    decode: Callable[[HTTPMessage, bytes], NDArray[np.float32]]
    about: str
    is_ours: bool = False
    is_other_way: bool = False


@dataclass
class Running:
    """A server that answers; seconds from its start until it said that it is ready, and until it had answered for an image."""

    side: Side
    port: int
    pid: int
    ready_s: float
    answered_s: float = 0.0

    def ask(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The logits of images, over HTTP."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        body, headers = self.side.encode(images)
        connection.request("POST", self.side.infer, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if answer.status != 200:
            raise Failed(f"{self.side.name} answered {answer.status}: {content[:300]!r}")
        return self.side.decode(answer.headers, content)

    def memory(self) -> dict[str, float]:
        """Megabytes (10^6) of all its processes: what is shared counted once (PSS), and for each process again (RSS)."""
        sums = {"Pss": 0, "Rss": 0}
        for pid in session_of(self.pid):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in sums:
                    sums[name] += int(value.split()[0]) * 1024
        return {"pss_mb": round(sums["Pss"] / 1e6, 1), "rss_mb": round(sums["Rss"] / 1e6, 1)}

    def cpu_seconds(self) -> float:
        """Of all its processes and threads, since they began."""
        tasks = (task for pid in session_of(self.pid) for task in Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def ours(package: Package, artifact: Artifact) -> Side:
    options = ("-f", "onnx", "-p", artifact.precision, "--device", "cpu", "--port", "PORT", "--json", "-q")
    path = f"/v2/models/{package.name}/infer"
    return Side(
        "kdzoo", (sys.executable, "-m", "kdzoo", "serve", str(package.folder), *options), "/v2/health/ready", path,
        encode_protocol, decode_protocol, "Open Inference Protocol, binary tensors", is_ours=True,
    )  # fmt: skip


def peers(name: str, environments: Path, model: Path) -> list[Side]:
    """One of `PEERS`, as `serve_peers` sets it up and says why, and the other ways to set it up that were tried."""
    command = (str(environments / name / "bin" / "python"), str(SCRIPTS / f"with_{name}.py"), str(model), "PORT")
    ready, infer = "/v2/models/model/ready", "/v2/models/model/infer"
    if name == "pytriton":
        made = [Side(name, command, ready, infer, encode_protocol, decode_protocol, "Open Inference Protocol, binary tensors")]
    elif name == "litserve":
        made = [Side(name, command, "/health", "/predict", encode_bare, decode_bare, "raw bytes; it has no protocol for tensors")]
    else:
        made = [Side(name, command, ready, infer, encode_base64, decode_base64, "Open Inference Protocol, base64 in JSON")]
        about = "raw bytes to a handler of one's own, past its protocol"
        made.append(Side(f"{name}-raw", command, ready, "/raw", encode_bare, decode_bare, about))
        about = "Open Inference Protocol, numbers in JSON"
        numbers = replace(made[0], name=f"{name} numbers", encode=encode_numbers, decode=decode_numbers, about=about)
        made.append(replace(numbers, is_other_way=True))
    other = [(f"{name} {words}".replace("--", ""), (*command, *words.split())) for words in OTHER_WAYS[name]]
    return made + [replace(made[0], name=way, command=words, is_other_way=True) for way, words in other]


def make_environments(folder: Path, onnxruntime: str) -> None:
    """A virtual environment for each of the peers, with this Python."""
    for name, packages in PEERS.items():
        subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
        pip = [str(folder / name / "bin" / "python"), "-m", "pip", "install", "-q", *packages, f"onnxruntime=={onnxruntime}"]
        subprocess.run(pip, check=True)


@contextmanager
def started(side: Side, image: NDArray[np.uint8]) -> Iterator[Running]:
    """A server from its start to its end; raises `Failed`."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [str(port) if word == "PORT" else word for word in side.command]
    # The way to our own modules is none of the peers' business.
    environment = {key: value for key, value in os.environ.items() if side.is_ours or key != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as scratch, (Path(scratch) / "log").open("w+") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, cwd=None if side.is_ours else scratch, start_new_session=True
        )
        try:
            wait_for(side, process, port)
            running = Running(side, port, process.pid, time.perf_counter() - began)
            running.ask(image)
            running.answered_s = time.perf_counter() - began
            yield running
        except (Failed, OSError, http.client.HTTPException) as error:
            log.seek(0)
            raise Failed(f"{side.name}: {error!r}; it wrote {log.read()[-1500:]}") from error
        finally:
            stop(process)


def wait_for(side: Side, process: subprocess.Popen[bytes], port: int) -> None:
    until = time.perf_counter() + PATIENCE
    while time.perf_counter() < until and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            connection.request("GET", side.ready)
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):  # it does not listen yet
            pass
        finally:
            connection.close()
        time.sleep(0.002)
    raise Failed(f"not ready after {PATIENCE:.0f} s" if process.poll() is None else f"ended with {process.returncode}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server, and whatever of it does not end by itself."""
    process.send_signal(signal.SIGTERM)
    until = time.perf_counter() + FAREWELL
    while (process.poll() is None or session_of(process.pid)) and time.perf_counter() < until:
        time.sleep(0.05)
    for pid in session_of(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait()


def session_of(leader: int) -> list[int]:
    """The processes that descend from `leader`, and itself."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended in the meantime
            continue
        if int(words[3]) == leader and words[0] != "Z":
            found.append(int(folder.name))
    return found


def encode_protocol(images: NDArray[np.uint8]) -> Body:
    """Open Inference Protocol v2 with the binary tensor extension."""
    given = {"name": "image", "datatype": "UINT8", "shape": list(images.shape), "parameters": {"binary_data_size": images.nbytes}}
    wanted = {"name": "logits", "parameters": {"binary_data": True}}
    head = json.dumps({"inputs": [given], "outputs": [wanted]}, separators=(",", ":")).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return head + images.tobytes(), headers


def decode_protocol(headers: HTTPMessage, body: bytes) -> NDArray[np.float32]:
    length = int(headers["Inference-Header-Content-Length"])
    shape = json.loads(body[:length])["outputs"][0]["shape"]
    return np.frombuffer(body[length:], "<f4").reshape(shape)


def encode_bare(images: NDArray[np.uint8]) -> Body:
    """Nothing but the pixels."""
    return images.tobytes(), {"Content-Type": "application/octet-stream"}


def decode_bare(headers: HTTPMessage, body: bytes) -> NDArray[np.float32]:
    return np.frombuffer(body, "<f4")[None]


def encode_base64(images: NDArray[np.uint8]) -> Body:
    """Open Inference Protocol v2 in JSON, the pixels as one text."""
    text = base64.b64encode(images.tobytes()).decode()
    given = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text], "parameters": {"content_type": "base64"}}
    return json.dumps({"inputs": [given]}).encode(), {"Content-Type": "application/json"}


def decode_base64(headers: HTTPMessage, body: bytes) -> NDArray[np.float32]:
    document: dict[str, Any] = json.loads(body)
    return np.frombuffer(base64.b64decode(document["outputs"][0]["data"][0]), "<f4")[None]


def encode_numbers(images: NDArray[np.uint8]) -> Body:
    """Open Inference Protocol v2 in JSON, each pixel as a number."""
    given = {"name": "image", "datatype": "UINT8", "shape": list(images.shape), "data": images.ravel().tolist()}
    return json.dumps({"inputs": [given]}).encode(), {"Content-Type": "application/json"}


def decode_numbers(headers: HTTPMessage, body: bytes) -> NDArray[np.float32]:
    return np.asarray(json.loads(body)["outputs"][0]["data"], np.float32)[None]
