"""Signals that come while a server starts are not lost and kill nothing; a process whose runtime hangs is replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from time import monotonic, sleep

import pytest

from kdzoo.tests.serving import MODEL, package_in, small_models

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not tell the children of a process")
RAW = {"Inference-Header-Content-Length": "0"}
# A server whose first call never comes back, and who gives up on it after a second. The workers are this script, too.
HANGING = """
import os, sys, threading
from pathlib import Path
from kdzoo.serve import model, repository, supervisor, worker
from kdzoo.serve.settings import Batching, Settings

class Hanging:
    def __init__(self, session):
        self.session = session

    def __getattr__(self, name):
        return getattr(self.session, name)

    def everything(self, images):
        if not (mark := Path("hung")).exists():
            mark.touch()
            threading.Event().wait()
        return self.session.everything(images)

def hanging(*arguments):
    opened = model.open_model(*arguments)
    opened.sessions = [Hanging(each) for each in opened.sessions]
    return opened

if len(sys.argv) > 2:
    model.LATE, model.HUNG, worker.GLANCE, repository.open_model = 0.4, 1.0, 0.1, hanging
    sys.argv[1:] = sys.argv[-1:]
    worker.main()
else:
    script = Path("python")
    script.write_text(f'#!/bin/sh\\nexec {sys.executable} {sys.argv[0]} "$@"\\n')
    script.chmod(0o700)
    sys.executable = str(script.resolve())
    listener = supervisor.listen("127.0.0.1", 0)
    settings = Settings((sys.argv[1],), batching=Batching(threads=1))
    server = supervisor.Supervisor(settings, listener, lambda line: print(line, file=sys.stderr))
    server.start()
    print(listener.getsockname()[1], flush=True)
    sys.exit(server.run())
"""


@pytest.fixture(scope="module")
def package(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    return package_in(small_models(once), "1").folder


@pytest.fixture(scope="module")
def image(package: Path) -> bytes:
    return package_in(package.parent, "1").golden()[0][0].tobytes()


def children(process: subprocess.Popen[str]) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@contextmanager
def starting(package: Path, *words: object) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server whose first worker was born a moment ago; and the worker."""
    command = [sys.executable, "-m", "kdzoo", "serve", package, "--port", 0, *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(list(map(str, command)), text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            while not (born := children(process)):
                assert process.poll() is None
                sleep(0.002)
            yield process, born[0]
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("pause", [0.0, 0.2, 0.4])
def test_a_server_that_is_told_to_end_while_it_starts_ends_at_once(package: Path, number: signal.Signals, pause: float) -> None:
    with starting(package) as (process, worker):
        sleep(pause)
        for each in (process.pid, worker) if number is signal.SIGINT else (process.pid,):  # a terminal tells all of them
            os.kill(each, number)
        began = monotonic()
        _, told = process.communicate(timeout=20)
        assert process.returncode == 0, told
        assert monotonic() - began < 3 and not Path(f"/proc/{worker}").exists()
    assert "Traceback" not in told and "another one starts" not in told


def test_of_several_workers_one_that_answers_already_ends_too(package: Path) -> None:
    with starting(package, "--workers", 3, "--threads", 1) as (process, _):
        while len(children(process)) < 2:
            sleep(0.002)
        workers = children(process)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=20)
        assert process.returncode == 0, told
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_a_worker_that_starts_is_not_killed_by_being_told_to_look_at_its_packages(package: Path) -> None:
    with starting(package) as (process, worker):
        for _ in range(40):
            for each in (worker, process.pid):
                os.kill(each, signal.SIGHUP)
            sleep(0.02)
        assert process.stdout is not None and "answers for" in process.stdout.readline()
        assert children(process) == [worker]
        process.terminate()
        _, told = process.communicate(timeout=20)
        assert process.returncode == 0 and "another one starts" not in told


def test_a_process_whose_runtime_hangs_is_replaced(package: Path, image: bytes, tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text(HANGING)

    def ask(port: int) -> int:
        with closing(HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
            connection.request("POST", f"/v2/models/{MODEL}/infer", image, {**RAW, "Kdzoo-Timeout-Ms": "200"})
            try:
                return connection.getresponse().status
            except (ConnectionError, HTTPException):
                return 0

    command = [sys.executable, str(tmp_path / "hanging.py"), str(package)]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=tmp_path) as process,
    ):
        assert process.stdout is not None
        port = int(process.stdout.readline())
        (first,) = children(process)
        found, until = [ask(port)], monotonic() + 15
        while found[-1] != 200:
            assert monotonic() < until, (found, (tmp_path / "log").read_text())
            sleep(0.05)
            found.append(ask(port))
        assert found[0] == 504 and set(found) <= {504, 503, 200, 0}
        assert children(process) != [first]
        process.terminate()
        assert process.wait(20) == 0
    told = (tmp_path / "log").read_text()
    assert f"{MODEL}: a call does not come back" in told and "another one starts" in told
