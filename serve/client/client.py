"""A client of kdzoo's server, blocking or asynchronous; it infers from Triton and KServe, too. Torch-free.

    with kdzoo.Client("http://localhost:8000") as client:
        for prediction in client.classify(["cat.jpg", "dog.jpg"]):
            print(prediction.best.name, prediction.best.probability)

Shapes: `N` images, `H` `W` space, `C` channels, `K` classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import finalize

from .answers import Class, Prediction, ServedModel
from .talk import Talk
from .transport import Asynchronous, Blocking, Way

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    import numpy as np
    from numpy.typing import NDArray

    from .images import Images

__all__ = ["AsyncClient", "Class", "Client", "Prediction", "ServedModel"]


class Client:
    """Asks a server, over connections that stay open; threads may share it. Use it in a `with`, or close it, or
    let go of it.

    Args:
        url: as in http://localhost:8000.
        model: None is the only model of the server, or the only entry; then the server picks its branch.
        token: that the server asks for.
        timeout: seconds of silence after which an answer is given up.
        retries: further tries where the server is busy (429, 503; as late as it asks for), or a connection was cut.
        concurrency: requests at the same time.

    Raises, in all its methods: kdzoo.errors.HubError, nobody answers, or not in time, or the server failed. UnknownName: the server
    has no such model or branch. UsageError: the request is refused; it says why.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        token: str | None = None,
        timeout: float = 30.0,
        retries: int = 3,
        concurrency: int = 16,
    ) -> None:
        self._talk = Talk(model)
        self._transport = Blocking(Way(url, token, timeout, retries, concurrency))
        finalize(self, self._transport.close)

    def classify(self, images: Images, branch: str | None = None, prefer: str | None = None, top: int = 5) -> list[Prediction]:
        """The `top` classes of one or many images, in their order.

        An image is a path, the bytes of a file, a PIL image, or an array uint8 `H W C` (or `N H W C`). The server scales files and
        pictures; arrays of the model's own size go as they are.

        Args:
            branch: of an entry, 1, 2, .., fused, ensemble, cascade. prefer: `accuracy`, `latency`, or limits as in
                `max-latency=2ms`, and the server picks a branch.
        """
        return self._transport.run(self._talk.classify(images, branch, prefer, top))

    def infer(self, images: NDArray[Any], branch: str | None = None, prefer: str | None = None) -> NDArray[np.float32]:
        """The logits `N K` of images as the model takes them, most often uint8 `N H W C`; a single image needs no `N`."""
        return self._transport.run(self._talk.infer(images, branch, prefer))

    def models(self) -> list[ServedModel]:
        """What the server answers for."""
        return self._transport.run(self._talk.models())

    def ready(self, model: str | None = None) -> bool:
        """Whether the server, or a model of it, answers at present; False, too, where nobody is there."""
        return self._transport.run(self._talk.ready(model))

    def metadata(self, model: str | None = None, branch: str | None = None) -> dict[str, Any]:
        """Names, types and shapes of what goes in and comes out, in the words of the protocol."""
        return self._transport.run(self._talk.metadata(model, branch))

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class AsyncClient:
    """`Client` in an event loop: the same arguments, methods and errors."""

    def __init__(
        self,
        url: str,
        model: str | None = None,
        token: str | None = None,
        timeout: float = 30.0,
        retries: int = 3,
        concurrency: int = 16,
    ) -> None:
        self._talk = Talk(model)
        self._transport = Asynchronous(Way(url, token, timeout, retries, concurrency))

    async def classify(
        self, images: Images, branch: str | None = None, prefer: str | None = None, top: int = 5
    ) -> list[Prediction]:
        """See `Client.classify`."""
        return await self._transport.run(self._talk.classify(images, branch, prefer, top))

    async def infer(self, images: NDArray[Any], branch: str | None = None, prefer: str | None = None) -> NDArray[np.float32]:
        """See `Client.infer`."""
        return await self._transport.run(self._talk.infer(images, branch, prefer))

    async def models(self) -> list[ServedModel]:
        """See `Client.models`."""
        return await self._transport.run(self._talk.models())

    async def ready(self, model: str | None = None) -> bool:
        """See `Client.ready`."""
        return await self._transport.run(self._talk.ready(model))

    async def metadata(self, model: str | None = None, branch: str | None = None) -> dict[str, Any]:
        """See `Client.metadata`."""
        return await self._transport.run(self._talk.metadata(model, branch))

    async def close(self) -> None:
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()
