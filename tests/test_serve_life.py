"""The life of a server: it starts and says so, ends without losing what it has taken, and survives the death of a worker."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from kdzoo.tests.serving import MODEL, Served, package_in, serve, small_models

INFER = f"/v2/models/{MODEL}/infer"
RAW = {"Inference-Header-Content-Length": "0"}


@pytest.fixture(scope="module")
def package(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    return package_in(small_models(once), "1").folder


@pytest.fixture(scope="module")
def image(package: Path) -> bytes:
    return package_in(package.parent, "1").golden()[0][0].tobytes()


def get(server: Served, path: str) -> tuple[int, bytes]:
    with closing(HTTPConnection(server.http, timeout=10)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()


def infer(server: Served, image: bytes) -> int:
    with closing(HTTPConnection(server.http, timeout=10)) as connection:
        connection.request("POST", INFER, image, RAW)
        response = connection.getresponse()
        response.read()
        return response.status


def answered(server: Served) -> int:
    """How many requests succeeded, in the words of the server."""
    document = json.loads(get(server, f"/v2/models/{MODEL}/stats")[1])
    count: int = document["model_stats"][0]["inference_stats"]["success"]["count"]
    return count


def workers_of(server: Served) -> list[int]:
    """The processes that answer."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    return [int(word) for word in children.read_text().split()]


class Clients:
    """Connections that ask again and again; what became of every request that was sent is kept."""

    def __init__(self, server: Served, image: bytes, count: int) -> None:
        self.server, self.image, self.ends, self.end = server, image, Counter[Any](), threading.Event()
        self.threads = [threading.Thread(target=self._ask) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def join(self) -> Counter[Any]:
        self.end.set()
        for thread in self.threads:
            thread.join()
        return self.ends

    def _ask(self) -> None:
        """Until the server is gone. An answer that began and did not end counts as `cut off`, one that never began as `reset`."""
        connection = HTTPConnection(self.server.http, timeout=20)
        with closing(connection):
            while not self.end.is_set():
                try:
                    connection.request("POST", INFER, self.image, RAW)
                    response = connection.getresponse()
                except ConnectionRefusedError:
                    return
                except (ConnectionError, HTTPException):
                    self.ends["reset"] += 1
                    connection.close()
                    continue
                try:
                    response.read()
                    self.ends[response.status] += 1
                except (ConnectionError, HTTPException):
                    self.ends["cut off"] += 1


def test_a_server_says_where_it_answers_and_ends_when_it_is_told(package: Path, image: bytes) -> None:
    began = monotonic()
    with serve(package) as server:
        assert monotonic() - began < 15
        assert server.models == [MODEL] and server.http.startswith("127.0.0.1:")
        assert "model.fp32.onnx on onnxruntime-cpu" in server.said, "it does not say what it chose"
        assert infer(server, image) == 200, "it said that it answers before it did"
        assert server.stop() == 0
        with pytest.raises(ConnectionRefusedError):
            infer(server, image)


def test_a_port_that_is_taken_is_an_error_of_the_environment(package: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "kdzoo", "serve", str(package), "--port", port], capture_output=True, text=True, check=False
        )
    assert done.returncode == 4 and f"127.0.0.1:{port}" in done.stderr and "--port" in done.stderr
    assert not done.stdout and "Traceback" not in done.stderr


def test_serving_imports_no_torch() -> None:
    code = (
        "import sys, kdzoo.serve.app, kdzoo.serve.worker, kdzoo.serve.supervisor, kdzoo.serve.connection\n"
        "print([name for name in ('torch', 'torchvision', 'onnx', 'kdzoo.train') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell what a process has loaded")
def test_a_process_that_answers_has_not_loaded_torch(package: Path, image: bytes) -> None:
    with serve(package) as server:
        assert infer(server, image) == 200
        for worker in (*workers_of(server), server.process.pid):
            assert "libtorch" not in Path(f"/proc/{worker}/maps").read_text()


def test_stopping_under_load_answers_every_request_that_was_taken(package: Path, image: bytes) -> None:
    with serve(package, "--threads", 1, "--max-batch", 2, "--grace", 10) as server:
        clients = Clients(server, image, 12)
        until = monotonic() + 10
        while clients.ends[200] < 200 and monotonic() < until:
            sleep(0.01)
        began = monotonic()
        assert server.stop() == 0
        assert monotonic() - began < 10
        ends = clients.join()
    assert ends["cut off"] == 0, ends
    assert set(ends) <= {200, 503, "reset"} and ends[200] >= 200, ends
    # A connection that is closed between two requests may meet the next one, which was not taken then.
    assert ends["reset"] <= 12, ends


def test_a_slow_body_that_began_before_the_end_is_answered(package: Path, image: bytes) -> None:
    with serve(package, "--grace", 10) as server:
        host, _, port = server.http.partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            head = f"POST {INFER} HTTP/1.1\r\nHost: t\r\nInference-Header-Content-Length: 0\r\nContent-Length: {len(image)}\r\n\r\n"
            connection.sendall(head.encode() + image[:10])
            sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            sleep(0.8)
            assert server.process.poll() is None, "it ended while a request was under way"
            connection.sendall(image[10:])
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert server.process.wait(15) == 0


def test_a_request_that_never_comes_to_an_end_is_given_up_after_the_grace(package: Path, image: bytes) -> None:
    with serve(package, "--grace", 1) as server:
        host, _, port = server.http.partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: t\r\nContent-Length: {len(image)}\r\n\r\n".encode())
            sleep(0.2)
            began = monotonic()
            code = server.stop()
            assert code == 1, "not every request was answered, and nobody learns of it"
            assert monotonic() - began < 8


def test_a_second_signal_ends_it_at_once(package: Path, image: bytes) -> None:
    with serve(package, "--grace", 30) as server:
        host, _, port = server.http.partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: t\r\nContent-Length: {len(image)}\r\n\r\n".encode())
            sleep(0.2)
            began = monotonic()
            server.process.send_signal(signal.SIGTERM)
            sleep(0.3)
            assert server.process.poll() is None
            assert server.stop() == 1
            assert monotonic() - began < 5


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not tell the children of a process")
def test_a_worker_that_is_killed_is_replaced_and_what_it_counted_is_kept(package: Path, image: bytes) -> None:
    with serve(package) as server:
        assert [infer(server, image) for _ in range(5)] == [200] * 5
        before = answered(server)
        (worker,) = workers_of(server)
        os.kill(worker, signal.SIGKILL)
        began, status = monotonic(), 0
        while status != 200:  # the socket stays open: whoever connects meanwhile waits
            with suppress(ConnectionError, HTTPException):
                status = infer(server, image)
            assert monotonic() - began < 10
        assert answered(server) >= before + 1, "the counters of the dead are lost"
        assert workers_of(server) != [worker] and "another one starts" in server.said
        assert server.stop() == 0


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not tell the children of a process")
def test_workers_do_not_outlive_who_would_stop_them(package: Path, image: bytes) -> None:
    with serve(package) as server:
        (worker,) = workers_of(server)
        server.process.kill()
        server.process.wait()
        until = monotonic() + 10
        while Path(f"/proc/{worker}").exists() and "Z" not in Path(f"/proc/{worker}/stat").read_text():
            assert monotonic() < until, "an orphan keeps the port"
            sleep(0.05)


def test_several_workers_answer_as_one_server(package: Path, image: bytes) -> None:
    with serve(package, "--workers", 2, "--threads", 1) as server:
        assert len(set(workers_of(server))) == 2
        clients = Clients(server, image, 8)
        until = monotonic() + 10
        while clients.ends[200] < 100 and monotonic() < until:
            sleep(0.01)
        ends = clients.join()
        assert set(ends) == {200}
        counts = {answered(server) for _ in range(8)}
        assert counts == {ends[200]}, "workers tell different sums"
        (line,) = [each for each in get(server, "/metrics")[1].decode().splitlines() if each.startswith("kdzoo_requests_succeeded")]
        assert float(line.split()[-1]) == ends[200]
        assert server.stop() == 0
