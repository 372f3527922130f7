"""Keeps the processes that answer alive: it owns the socket, so that nobody is refused while a new worker starts, and it imports
nothing heavy. Torch-free; for systems with signals (Linux, macOS)."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import EnvironmentProblem, KdzooError
from ..export.machine import child_environment
from .settings import Settings

COUNTERS_BYTES = 1 << 26  # of memory that workers share; a page is used when it is written
PATIENCE = 60.0  # seconds in which a worker must answer
LONGEST_BREAK = 5.0  # seconds between two starts of a worker that keeps dying
SPARE = 5.0  # seconds after the grace, before a worker is killed
GLANCE = 0.05  # seconds between two looks for a signal, while a worker starts
ENDS = {signal.SIGTERM, signal.SIGINT}
HEARD = {*ENDS, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM}


class WorkerFailed(KdzooError):
    """What a worker could not do, in its own words and with its exit code."""

    def __init__(self, document: dict[str, Any]) -> None:
        super().__init__(document["what"], known=document["known"], hint=document["hint"])
        self.exit_code = document["exit_code"]


class Told(Exception):
    """To end, before all workers answered."""


@dataclass
class Worker:
    """One process; `began` and `failures` space its starts out."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    failures: int = 0
    due: float | None = None


@dataclass
class Supervisor:
    """See above. `say` talks."""

    settings: Settings
    listener: socket.socket
    say: Callable[[str], None]
    workers: list[Worker] = field(default_factory=list)
    stopping: float | None = None

    def start(self) -> dict[str, Any]:
        """Start all workers and wait until they answer; gives what the first one told.

        Raises:
            KdzooError: one cannot answer; none is left running. SystemExit: it was told to end meanwhile, and has ended.
        """
        shared = self._shared_memory()
        self.settings = replace(self.settings, http=self.listener.fileno(), shared=shared)
        # Signals are taken one by one in `run`; a worker lets them through when it knows what to do with them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
        self.workers = [Worker(number) for number in range(self.settings.workers)]
        try:
            told = [self._wait(worker, self._spawn(worker)) for worker in self.workers]
        except Told:
            raise SystemExit(self.run()) from None
        except BaseException:
            self._kill()
            for worker in self.workers:
                if worker.process is not None:
                    worker.process.wait()
            self.listener.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            raise
        return told[0]

    def run(self) -> int:
        """Until a signal says so; the exit code, 0 where every accepted request was answered."""
        while any(worker.process is not None or worker.due is not None for worker in self.workers):
            number = signal.sigwait(HEARD)
            if number in ENDS:
                self._stop()
            elif number == signal.SIGHUP:
                self._send(signal.SIGHUP)
            self._look()
        return 0 if not any(worker.failures for worker in self.workers) else 1

    def _stop(self) -> None:
        if self.stopping is None:
            self.stopping = time.monotonic() + self.settings.grace + SPARE
            self.listener.close()
            for worker in self.workers:
                worker.due = None
            self._send(signal.SIGTERM)
            self._alarm(self.settings.grace + SPARE)
        else:  # asked a second time
            self._kill()

    def _look(self) -> None:
        """Who has ended, and who is to be started again."""
        now = time.monotonic()
        for worker in self.workers:
            if worker.process is not None and (code := worker.process.poll()) is not None:
                worker.process = None
                if self.stopping is None:
                    worker.failures = worker.failures + 1 if now - worker.began < LONGEST_BREAK else 1
                    pause = min(LONGEST_BREAK, 0.05 * 2 ** (worker.failures - 1)) if worker.failures > 1 else 0.0
                    worker.due = now + pause
                    self.say(f"worker {worker.number} ended with status {code}; another one starts")
                else:
                    worker.failures = int(code != 0)
            if worker.due is not None and now >= worker.due:
                worker.due = None
                os.close(self._spawn(worker))  # what it tells was told by the first one
        if self.stopping is not None and now >= self.stopping:
            self._kill()
        elif times := [worker.due for worker in self.workers if worker.due is not None]:
            self._alarm(max(0.001, min(times) - time.monotonic()))

    def _spawn(self, worker: Worker) -> int:
        """Start a process; gives the descriptor on which it tells that it answers."""
        settings = replace(self.settings, number=worker.number)
        reading, writing = os.pipe()
        passed = (writing, settings.http, settings.shared)
        command = [sys.executable, "-P", "-m", "kdzoo.serve.worker", str(writing)]
        worker.process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=passed, env=child_environment())
        worker.began = time.monotonic()
        os.close(writing)
        assert worker.process.stdin is not None
        try:
            worker.process.stdin.write(settings.to_json().encode())
            worker.process.stdin.close()
        except BrokenPipeError:
            self.say(f"worker {worker.number} ended before it was told what to serve")
        return reading

    def _wait(self, worker: Worker, reading: int) -> dict[str, Any]:
        """What a worker tells when it answers."""
        with selectors.DefaultSelector() as selector, os.fdopen(reading) as pipe:
            selector.register(pipe, selectors.EVENT_READ)
            until, told = time.monotonic() + PATIENCE, False
            while not told and time.monotonic() < until:
                told = bool(selector.select(GLANCE))
                if ENDS & signal.sigpending():
                    raise Told
            line = pipe.readline() if told else ""
        if not line:
            what = "ended before it answered" if told else f"did not come to answer within {PATIENCE:.0f} seconds"
            raise EnvironmentProblem(f"worker {worker.number} {what}", hint="look at what it printed; kdzoo doctor")
        document: dict[str, Any] = json.loads(line)
        if "error" in document:
            raise WorkerFailed(document["error"])
        return document

    def _send(self, number: signal.Signals) -> None:
        for worker in self.workers:
            if worker.process is not None and worker.process.poll() is None:
                worker.process.send_signal(number)

    def _kill(self) -> None:
        self._send(signal.SIGKILL)

    def _alarm(self, seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def _shared_memory(self) -> int:
        """Memory without a name, as large as the counters of any server; pages that nobody writes cost nothing."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("kdzoo-counters")
        else:  # macOS
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, COUNTERS_BYTES)
        return descriptor


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, with a long queue: it is the workers that accept.

    Raises:
        EnvironmentProblem: the address is taken, or is none of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot listen at {host}:{port}: {error.strerror or error}",
            hint="another --port, or stop what listens there; --port 0 takes a free one",
        ) from None
