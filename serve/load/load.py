"""Load on a server: `kdzoo bench --url`. Requests are made beforehand, of random images as raw tensors; warm-up is left out; one
process sends, and tells how much of a processor it took.

Shapes: `N` images.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ...errors import EnvironmentProblem, HubError
from ..client.answers import DTYPES, error_of, read_json
from ..client.requests import Input, Request, Wish
from ..client.talk import Talk
from ..client.transport import Blocking, Way
from .loops import Closed, Goal, Load, Open
from .tally import Tally

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLIENTS = (1, 8, 32)
REQUESTS, REQUEST_BYTES = 32, 32 * 2**20  # different ones, and how much memory they may take


@dataclass(frozen=True)
class Traffic:
    """`clients`: of closed loops, one each. `rates`: requests a second, of open loops. `batches`: images of a request.
    `honour_retry_after`: the client of a closed loop stays away as long as a refusal asks for."""

    clients: Sequence[int] = ()
    rates: Sequence[float] = ()
    batches: Sequence[int] = (1,)
    seconds: float = 10.0
    warm_up: float = 1.0
    honour_retry_after: bool = False
    timeout: float = 30.0
    seed: int = 0


def bench_url(
    url: str,
    traffic: Traffic,
    *,
    model: str | None = None,
    branch: str | None = None,
    token: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The figures of every load in turn.

    Raises:
        HubError: the server cannot be reached. UnknownName: it has no such model. UsageError: it does not take the requests.
    """
    from ...export.benchmark import conditions

    if find_spec("httptools") is None:
        raise EnvironmentProblem("a load needs httptools", hint="pip install 'kdzoo[serve]'")
    way = Way(url, token, traffic.timeout, concurrency=1)
    transport = Blocking(way)
    try:
        talk = Talk(model)
        wish = transport.run(talk.wish(branch))
        taken = transport.run(talk.input(wish))
        (about,) = transport.answers([Request("GET", "/v2")])
        server = read_json(about, dict) if about.is_good else {}
        requests = {size: prepare(transport, wish, taken, size, traffic.seed) for size in traffic.batches}
    finally:
        transport.close()
    goal = goal_of(way, traffic)
    shares = is_local(goal.address)
    if shares:
        say("the server shares this machine with the load: each takes processor time from the other")
    raise_file_limit()
    under, results = conditions(1, None), []
    for size, bodies in requests.items():
        sent = replace(goal, requests=[in_bytes(way, body) for body in bodies])
        for labels, make in loads(sent, traffic):
            who = f"{labels['clients']} clients" if "clients" in labels else f"{labels['rate']:g} requests a second"
            say(f"{labels['loop']} loop, {who}, batch {size}: {traffic.seconds:g} seconds")
            tally = play(make, traffic, by_intention="rate" in labels)
            results.append({"clients": None, "rate": None, **labels, "batch": size, **tally.figures(size)})
    return {
        "url": url,
        "model": wish.name,
        "branch": branch,
        "server": {key: server.get(key) for key in ("name", "version")},
        "input": {"datatype": taken.datatype, "sides": list(taken.sides)},
        **{key: getattr(traffic, key) for key in ("seconds", "warm_up", "seed", "honour_retry_after")},
        "same_machine": shares,
        **{key: under[key] for key in ("host", "load_average")},
        "results": results,
    }


def loads(goal: Goal, traffic: Traffic) -> Iterator[tuple[dict[str, Any], Callable[[Tally], Load]]]:
    """What each load is, and what makes it."""
    for clients in traffic.clients or (() if traffic.rates else CLIENTS):
        yield {"loop": "closed", "clients": clients}, partial(Closed, goal, num_clients=clients)
    for rate in traffic.rates:
        yield {"loop": "open", "rate": rate}, partial(Open, goal, rate=rate, seed=traffic.seed)


def play(make: Callable[[Tally], Load], traffic: Traffic, *, by_intention: bool) -> Tally:
    """One load, from an empty start, in an event loop of its own."""

    async def run() -> Tally:
        begin = time.perf_counter() + traffic.warm_up
        return await make(Tally(begin, begin + traffic.seconds, by_intention)).run()

    with no_garbage(), asyncio.Runner(loop_factory=event_loop()) as runner:
        return runner.run(run())


def prepare(transport: Blocking, wish: Wish, taken: Input, size: int, seed: int) -> list[Request]:
    """Inferences of `size` random images each, the first of which is tried; raises the error that a refusal is."""
    import numpy as np

    draw, dtype = np.random.default_rng(seed), np.dtype(DTYPES[taken.datatype])
    shape = (size, *(side if side > 0 else 32 for side in taken.sides))
    count = int(np.prod(shape)) * dtype.itemsize

    def images() -> NDArray[Any]:
        if dtype.kind == "f":
            return draw.standard_normal(shape, np.float32).astype(dtype)
        return draw.integers(0, 256 if dtype.itemsize == 1 else 1000, shape).astype(dtype)

    requests = [wish.infer(taken, images()) for _ in range(max(1, min(REQUESTS, REQUEST_BYTES // count)))]
    (answer,) = transport.answers(requests[:1])
    if not answer.is_good:
        raise error_of(answer)
    return requests


def in_bytes(way: Way, request: Request) -> bytes:
    """A request as it goes over the wire."""
    parts = urlsplit(way.url)
    body = request.content()
    headers = {
        "Host": parts.netloc.rpartition("@")[2],
        "Accept": "*/*",
        **way.headers,
        **request.headers,
        "Content-Length": str(len(body)),
    }
    lines = [f"{request.method} {parts.path.rstrip('/')}{request.path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def goal_of(way: Way, traffic: Traffic) -> Goal:
    """Raises `HubError` where the name of the host is not known."""
    import ssl

    parts = urlsplit(way.url)
    name = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        address = str(socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise HubError(f"{name} cannot be found: {error}") from None
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    return Goal(address, port, tls, name, (), traffic.honour_retry_after, traffic.timeout)


def is_local(address: str) -> bool:
    """Whether this machine has that address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(family) as probe:
        probe.bind((address, 0))
        return True
    return False


def event_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed."""
    if find_spec("uvloop") is None:
        return None
    import uvloop

    return uvloop.new_event_loop


@contextmanager
def no_garbage() -> Iterator[None]:
    """The collector would stop the clock that everything is measured with."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def raise_file_limit() -> None:
    """As many connections as the system allows."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
