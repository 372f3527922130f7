"""Processes that decode pictures ahead of the training loop, into memory that they share with it. Torch-free.

Not `multiprocessing`: its children import the main module again, with torch and all, and it leaves segments of shared memory
behind when the parent is killed. Here a child imports numpy and Pillow; tasks go through one socket from which all take (a slow
child slows nobody down), answers through one socket each (whose end tells that the child has died), pixels through an anonymous
file. When the parent is gone, by whatever cause, the sockets close and the children end.

Which process decodes a picture has no influence on it: what is random about it travels with the task.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import selectors
import signal
import socket
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError, EnvironmentProblem, IntegrityError, KdzooError
from ..preprocess import Preprocess
from .decoder import Decoder
from .images import Picture

SLOTS = 4  # batches decoded ahead
TASK = 32  # pictures of one task, at most
ERRORS: dict[str, type[KdzooError]] = {"DataError": DataError, "IntegrityError": IntegrityError}
CHILD = """
import json, sys
settings = json.loads(sys.argv[1])
sys.path[:] = settings.pop("path")
from kdzoo.zoo.sets.decoder import serve
serve(**settings)
"""
THREADS = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}


@dataclass
class _Children:
    """The processes and everything through which they are talked to."""

    memory: mmap.mmap
    tasks: socket.socket
    answers: dict[socket.socket, subprocess.Popen[bytes]]
    selector: selectors.BaseSelector

    def stop(self) -> None:
        self.tasks.close()
        self.selector.close()
        for answers, process in self.answers.items():
            answers.close()
            process.kill()
            process.wait()


class DecodePool:
    """`workers` processes, started by the first use; with none, this process decodes.

    A batch has `batch_size` pictures at most. Only for Linux, elsewhere this process decodes.
    """

    def __init__(self, preprocess: Preprocess, batch_size: int, workers: int) -> None:
        self.preprocess = preprocess
        self.shape = (SLOTS, batch_size, preprocess.height, preprocess.width, 3)
        self.workers = workers if sys.platform == "linux" else 0
        self.task = max(1, min(TASK, math.ceil(batch_size / max(workers, 1))))
        self._open = [0] * SLOTS  # tasks of a slot that are not yet answered
        self._children: _Children | None = None
        self._stop: weakref.finalize[Any, Any] | None = None

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; a later use starts new ones."""
        if self._stop is not None:
            self._stop()
        self._children, self._stop, self._open = None, None, [0] * SLOTS

    def stream(self, requests: Iterable[Sequence[Picture]]) -> Iterator[NDArray[np.uint8]]:
        """The pixels `B H W C` of each request in turn, decoded ahead. They hold until the next ones are asked for.

        Raises:
            DataError, IntegrityError: a picture cannot be decoded.
            EnvironmentProblem: a process has died.
        """
        if not self.workers:
            yield from self._alone(requests)
            return
        memory, ahead = np.frombuffer(self._start().memory, np.uint8).reshape(self.shape), iter(requests)
        while any(self._open):  # what an earlier stream, which was left early, had asked for
            self._receive(heed_errors=False)
        free, waiting = deque(range(SLOTS)), deque[tuple[int, int]]()
        while True:
            while free and (request := next(ahead, None)) is not None:
                waiting.append((free[0], len(request)))
                self._submit(free.popleft(), request)
            if not waiting:
                return
            slot, count = waiting.popleft()
            while self._open[slot]:
                self._receive()
            yield memory[slot, :count]
            free.append(slot)

    def _alone(self, requests: Iterable[Sequence[Picture]]) -> Iterator[NDArray[np.uint8]]:
        decoder = Decoder(self.preprocess)
        try:
            for request in requests:
                yield np.stack([decoder.read(picture) for picture in request])
        finally:
            decoder.close()

    def _start(self) -> _Children:
        if self._children is None:
            size = math.prod(self.shape)
            file = os.memfd_create("kdzoo-images")
            os.ftruncate(file, size)
            tasks, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            children = _Children(mmap.mmap(file, size), tasks, {}, selectors.DefaultSelector())
            # Before the first child: if one cannot be started, the others are ended.
            self._children, self._stop = children, weakref.finalize(self, children.stop)
            for _ in range(self.workers):
                answers, answers_theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                fds = {"tasks_fd": theirs.fileno(), "answers_fd": answers_theirs.fileno(), "memory_fd": file}
                settings = {**fds, "shape": self.shape, "preprocess": self.preprocess.to_dict(), "path": sys.path}
                # A session of its own: Ctrl-C is for the training loop, which ends the step and saves.
                children.answers[answers] = subprocess.Popen(
                    [sys.executable, "-P", "-c", CHILD, json.dumps(settings)],
                    pass_fds=fds.values(), stdin=subprocess.DEVNULL, start_new_session=True, env={**os.environ, **THREADS},
                )  # fmt: skip
                children.selector.register(answers, selectors.EVENT_READ)
                answers_theirs.close()
            theirs.close()
            os.close(file)
        return self._children

    def _submit(self, slot: int, request: Sequence[Picture]) -> None:
        """Queue the tasks of a batch; where the queue is full, wait for answers."""
        assert len(request) <= self.shape[1]
        for first in range(0, len(request), self.task):
            message = json.dumps((slot, first, request[first : first + self.task])).encode()
            while True:
                try:
                    self._start().tasks.send(message, socket.MSG_DONTWAIT)
                    break
                except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                    self._receive()
            self._open[slot] += 1

    def _receive(self, heed_errors: bool = True) -> None:
        """Wait for one answer."""
        children = self._start()
        answers = children.selector.select()[0][0].fileobj
        assert isinstance(answers, socket.socket)
        message = b""
        with suppress(ConnectionResetError):
            message = answers.recv(1 << 16)
        if not message:
            status = children.answers[answers].wait()
            self.close()
            raise _died(status)
        answer = json.loads(message)
        self._open[answer["slot"]] -= 1
        if heed_errors and "error" in answer:
            raise ERRORS[answer["error"]](answer["what"], hint=answer["hint"])


def _died(status: int) -> EnvironmentProblem:
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
    hint = "out of memory is the usual cause: use fewer workers" if status == -signal.SIGKILL else "its last words are above"
    return EnvironmentProblem(f"a process that decodes images {how}", hint=f"{hint}; --resume goes on from the last checkpoint")
