"""The process that answers: `python -m kdzoo.serve.worker`, its settings on stdin. Torch-free.

It writes a line of JSON to the file descriptor that is its argument as soon as it answers. SIGTERM: it refuses what is new, answers
what it has taken, and ends with 0; SIGHUP: it looks whether its packages have changed. It begins with both held back, and lets them
through when there is somebody to take them.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import mmap
import os
import signal
import socket
import sys
import warnings
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..errors import KdzooError
from .settings import Settings

if TYPE_CHECKING:
    from .repository import Repository

ACCEPTS = 16  # the event loop takes one connection of each listening socket in a turn, and under load its turns are long
LAME = 0.3  # seconds in which a stopping server still refuses in words, before it stops to listen
SWITCH = 0.0005  # seconds after which a thread gives way; Python's own 5 ms are longer than an answer takes
ENDS = (signal.SIGTERM, signal.SIGINT)
GLANCE = 1.0  # seconds between two looks for what should end a worker


def main() -> None:
    """Serve until a signal comes. What a user can act on goes to the supervisor, which tells it as the command line does."""
    for number in ENDS:
        signal.signal(number, lambda *_: os._exit(0))  # it has taken no request yet
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*ENDS, signal.SIGCHLD, signal.SIGALRM})
    settings, ready = Settings.from_json(sys.stdin.read()), int(sys.argv[1])
    sys.setswitchinterval(SWITCH)
    warnings.filterwarnings("ignore", message="Image size")  # the limit of ours is stricter
    for name in ("uvicorn.error", "python_multipart"):  # they say a line for every client that sends nonsense
        logging.getLogger(name).setLevel(logging.ERROR)
    raise_file_limit()
    import uvloop

    try:
        uvloop.run(serve(settings, ready))
    except KdzooError as error:
        document = {"what": error.what, "known": error.known, "hint": error.hint, "exit_code": error.exit_code}
        if not tell(ready, {"error": document}):
            _say(f"{error.what}. {error.hint}".strip())
        sys.exit(error.exit_code)


def tell(ready: int, document: dict[str, Any]) -> bool:
    """One line to the supervisor; False where it does not listen, as it does not to a worker that takes the place of a dead one."""
    try:
        os.write(ready, (json.dumps(document) + "\n").encode())
    except BrokenPipeError:
        return False
    finally:
        os.close(ready)
    return True


def raise_file_limit() -> None:
    """As many connections as the system allows."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def serve(settings: Settings, ready: int) -> None:
    """Open the packages, answer, and end after a signal."""
    from .app import App
    from .counters import Counters, num_bytes
    from .http_server import http_server
    from .repository import Repository

    say = (lambda line: None) if settings.quiet else _say
    repository = await asyncio.to_thread(
        Repository,
        settings.sources,
        settings.branches,
        settings.wishes,
        settings.batching,
        say if settings.number == 0 else lambda line: None,
    )
    names, largest = list(repository.served), repository.max_batch
    memory = shared_memory(settings.shared, num_bytes(len(names), largest, settings.workers))
    repository.start(Counters(names, largest, memory, settings.workers, settings.number))
    app = App(repository, settings.bounds, notify_siblings(settings))

    server = http_server(app, settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in ENDS:
        loop.add_signal_handler(number, stop.set)
    tasks: set[asyncio.Task[None]] = set()

    def begin(work: Coroutine[Any, Any, None]) -> None:
        tasks.add(task := loop.create_task(work))
        task.add_done_callback(tasks.discard)

    loop.add_signal_handler(signal.SIGHUP, lambda: begin(repository.reload()))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    begin(stop_with_parent(stop))
    begin(stop_when_hung(repository, stop))
    listener = socket.socket(fileno=settings.http)
    listeners = [listener, *(listener.dup() for _ in range(ACCEPTS - 1))]
    serving = loop.create_task(server.serve(listeners))
    rpc = None
    if settings.grpc is not None:
        from .grpc.server import start_grpc

        rpc = await start_grpc(app, settings)
    while not server.started and not serving.done():
        await asyncio.sleep(0.005)
    gc.freeze()  # what is here by now stays: the collector need not look at it again, which takes longer than an answer
    tell(ready, {"pid": os.getpid(), "models": names, "grpc": rpc.port if rpc else None})
    await stop.wait()
    app.guard.stopping = True
    say(f"stopping: {app.guard.under_way} requests under way")
    closing = [loop.create_task(rpc.stop(settings.grace))] if rpc else []
    await asyncio.sleep(LAME)
    server.should_exit = True
    await serving
    await asyncio.gather(*closing)
    app.decoder.close()
    if repository.hung:
        os._exit(1)  # in any other way it would wait for the threads that hang
    await repository.close()
    if lost := server.lost + (rpc.lost if rpc else 0):
        say(f"{lost} requests were not answered within {settings.grace:g} seconds")
        sys.exit(1)


async def stop_with_parent(stop: asyncio.Event) -> None:
    """A supervisor that was killed can neither stop this process nor start it again."""
    parent = os.getppid()
    while os.getppid() == parent:
        await asyncio.sleep(GLANCE)
    stop.set()


async def stop_when_hung(repository: Repository, stop: asyncio.Event) -> None:
    """A call that does not come back holds a thread for ever: another process does better."""
    while not (hung := repository.hung):
        await asyncio.sleep(GLANCE)
    _say(f"{', '.join(hung)}: a call does not come back; this process ends, so that another one can answer")
    stop.set()


def shared_memory(descriptor: int, size: int) -> mmap.mmap | bytearray:
    """What the supervisor gave for the counters; a process alone has its own."""
    return mmap.mmap(descriptor, 0) if descriptor >= 0 else bytearray(size)


def notify_siblings(settings: Settings) -> Any:
    """Where there are other workers, the supervisor lets all of them look at their packages."""
    return (lambda: os.kill(os.getppid(), signal.SIGHUP)) if settings.workers > 1 else (lambda: None)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
