"""How requests get to a server and answers back: connections that stay open, several at once, patience with a server that is busy.
Blocking and asynchronous; when to try again is decided for both in one place."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ...errors import EnvironmentProblem, HubError, UsageError
from .answers import LATER, Answer
from .requests import Request

if TYPE_CHECKING:
    from .talk import Steps, T

LONGEST_WAIT = 60.0  # seconds; who asks for more patience is told to the caller
FIRST_WAIT = 0.1  # before the second try, where the server does not say how long; doubled each time


def http_library() -> Any:
    """httpx2 or, as it was called before, httpx: the one that huggingface_hub brought."""
    name = next((name for name in ("httpx2", "httpx") if find_spec(name)), None)
    if name is None:
        raise EnvironmentProblem("a client needs httpx2", hint="pip install httpx2")
    return import_module(name)


@dataclass(frozen=True)
class Failure:
    """Why there is no answer, whether another try may get one, and what to do."""

    what: str
    again: bool
    hint: str = "kdzoo serve starts a server; is this its address?"


@dataclass(frozen=True)
class Way:
    """Where a server is, and how patient to be with it. `timeout`: seconds of silence. `retries`: further tries. `concurrency`:
    requests at the same time."""

    url: str
    token: str | None = None
    timeout: float = 30.0
    retries: int = 3
    concurrency: int = 16

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UsageError(f"{self.url!r} is not the address of a server", hint="as in http://localhost:8000")
        if self.timeout <= 0 or self.retries < 0 or self.concurrency < 1:
            raise UsageError("a client needs a timeout above 0, no negative retries, and a concurrency of at least 1")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token):
            raise UsageError("the token is empty, or has signs that no header can carry")

    @property
    def headers(self) -> dict[str, str]:
        """Of every request. Answers are not to be packed: tensors gain nothing by it, and the server would take its time."""
        headers = {"Accept-Encoding": "identity", "Kdzoo-Timeout-Ms": str(max(1, round(1000 * self.timeout)))}
        return headers if self.token is None else {**headers, "Authorization": f"Bearer {self.token}"}

    @property
    def settings(self) -> dict[str, Any]:
        """Of httpx."""
        httpx = http_library()
        return {
            "base_url": self.url.rstrip("/"),
            "headers": self.headers,
            "timeout": httpx.Timeout(self.timeout, pool=None),
            "limits": httpx.Limits(
                max_connections=self.concurrency, max_keepalive_connections=self.concurrency, keepalive_expiry=30.0
            ),
        }

    def wait(self, outcome: Answer | Failure, tries: int) -> float | None:
        """Seconds until the next try, after so many of them; None where there is none. Never the same for two clients, who would
        come back together."""
        if tries > self.retries:
            return None
        if isinstance(outcome, Failure):
            return FIRST_WAIT * 2 ** (tries - 1) * random.uniform(0.5, 1.5) if outcome.again else None
        if outcome.status not in LATER:
            return None
        asked = asked_wait(outcome.headers.get("retry-after"))
        base = FIRST_WAIT * 2 ** (tries - 1) if asked is None else asked
        return base * random.uniform(1.0, 1.5) if base <= LONGEST_WAIT else None

    def settle(self, outcome: Answer | Failure, request: Request) -> Answer:
        """An answer, whatever its status; raises `HubError` where there is none."""
        if isinstance(outcome, Answer):
            return outcome
        if request.lenient:
            return Answer(0)
        raise HubError(f"{self.url} {outcome.what}", hint=outcome.hint)

    def failure(self, error: Exception) -> Failure:
        """What an exception of httpx means."""
        httpx = http_library()
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return Failure(f"cannot be trusted: {error!s:.200}", False, "where it is its own: SSL_CERT_FILE=ITS_CERTIFICATE.pem")
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)):
            return Failure(f"cannot be reached: {error!s:.200}", isinstance(error, httpx.ConnectError))
        if isinstance(error, httpx.TimeoutException):
            return Failure(f"said nothing for {self.timeout:g} seconds", False, "give it more time, or fewer requests at once")
        if isinstance(error, (httpx.NetworkError, httpx.RemoteProtocolError)):
            return Failure(f"cut the connection: {error!s:.200}", True)
        return Failure(f"cannot be asked: {error!s:.200}", False)


def asked_wait(text: str | None) -> float | None:
    """Seconds of a Retry-After, which holds seconds or a date."""
    if text is None:
        return None
    if text.strip().isdigit():
        return float(text[:12])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


class Blocking:
    """Threads, one for each request at the same time."""

    def __init__(self, way: Way) -> None:
        httpx = http_library()
        self.way, self.http = way, httpx.Client(**way.settings)
        self.pool = ThreadPoolExecutor(way.concurrency, thread_name_prefix="kdzoo-client")

    def run(self, steps: Steps[T]) -> T:
        """The result of a talk."""
        try:
            requests = next(steps)
            while True:
                requests = steps.send(self.answers(requests))
        except StopIteration as done:
            result: T = done.value
            return result

    def answers(self, requests: Sequence[Request]) -> list[Answer]:
        """In the order of the requests."""
        if len(requests) == 1:
            return [self._answer(requests[0])]
        futures = [self.pool.submit(self._answer, request) for request in requests]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.http.close()

    def _answer(self, request: Request) -> Answer:
        httpx = http_library()
        content, tries = request.content(), 0
        while True:
            outcome: Answer | Failure
            try:
                outcome = answer_of(self.http.request(request.method, request.path, content=content, headers=request.headers))
            except httpx.HTTPError as error:
                outcome = self.way.failure(error)
            tries += 1
            wait = None if request.lenient else self.way.wait(outcome, tries)
            if wait is None:
                return self.way.settle(outcome, request)
            time.sleep(wait)


class Asynchronous:
    """The same in an event loop."""

    def __init__(self, way: Way) -> None:
        httpx = http_library()
        self.way, self.http = way, httpx.AsyncClient(**way.settings)
        self.free = asyncio.Semaphore(way.concurrency)

    async def run(self, steps: Steps[T]) -> T:
        """The result of a talk."""
        try:
            requests = next(steps)
            while True:
                requests = steps.send(await self.answers(requests))
        except StopIteration as done:
            result: T = done.value
            return result

    async def answers(self, requests: Sequence[Request]) -> list[Answer]:
        """In the order of the requests."""
        tasks = [asyncio.ensure_future(self._answer(request)) for request in requests]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def close(self) -> None:
        await self.http.aclose()

    async def _answer(self, request: Request) -> Answer:
        httpx = http_library()
        async with self.free:
            content, tries = await asyncio.to_thread(request.content), 0
            while True:
                outcome: Answer | Failure
                try:
                    response = await self.http.request(request.method, request.path, content=content, headers=request.headers)
                    outcome = answer_of(response)
                except httpx.HTTPError as error:
                    outcome = self.way.failure(error)
                tries += 1
                wait = None if request.lenient else self.way.wait(outcome, tries)
                if wait is None:
                    return self.way.settle(outcome, request)
                await asyncio.sleep(wait)


def answer_of(response: Any) -> Answer:
    return Answer(response.status_code, {name.lower(): value for name, value in response.headers.items()}, response.content)
