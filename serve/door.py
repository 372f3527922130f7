"""What is decided about a request as soon as its headers are there, before it gets a task of its own: where hundreds of clients ask
for more than can be computed, most of what they ask for is refused, and that must cost next to nothing. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .refusal import Refusal

if TYPE_CHECKING:
    from .batching import Batcher
    from .guard import Guard, Scope
    from .model import Model
    from .repository import Repository

MODELS = b"/v2/models/"
VERBS = ("infer", "classify")
PREFER = b"kdzoo-prefer"
ENTERED = "kdzoo.entered"  # in a scope: the queue that it is on its way to


class Door:
    """Counts who is on the way: many requests come in before the first of them has its turn, and finds its place in the queue."""

    def __init__(self, repository: Repository, guard: Guard) -> None:
        self.repository, self.guard = repository, guard

    def refuses(self, scope: Scope, method: bytes, url: bytes) -> Refusal | None:
        """The answer to inference for which there is no room; None for all else, which the application judges."""
        if method != b"POST" or not url.startswith(MODELS):
            return None
        name, _, verb = url[len(MODELS) :].decode("latin-1").partition("/")
        served = self.repository.served.get(name)
        headers = dict(scope["headers"])
        if served is None or verb not in VERBS or PREFER in headers or not served.model.ready or self.guard.stopping:
            return None
        try:
            self.guard.admit(url.decode("latin-1"), headers)
        except Refusal:  # that is worth more words
            return None
        refusal = self.no_room(served.model, client_of(scope))
        if refusal is None:
            scope[ENTERED] = served.model.batcher
        return refusal

    def no_room(self, model: Model, client: str) -> Refusal | None:
        """Why one more request of this client cannot be taken; it is counted."""
        batcher = model.batcher
        assert batcher is not None
        try:
            self.guard.check(client)
        except Refusal as refusal:
            return refusal
        if batcher.waiting + batcher.coming < batcher.bound:
            return None
        batcher.row.add("refused")
        batcher.row.add("fail")
        return batcher.full()

    def enters(self, scope: Scope) -> None:
        """It was not refused, and gets its task now."""
        batcher: Batcher | None = scope.get(ENTERED)
        if batcher is not None:
            batcher.coming += 1
            self.guard.enter(client_of(scope))

    def starts(self, scope: Scope) -> bool:
        """Its task begins; gives whether it has entered before."""
        batcher: Batcher | None = scope.pop(ENTERED, None)
        if batcher is not None:
            batcher.coming -= 1
        return batcher is not None


def client_of(scope: Any) -> str:
    """The address of who asks."""
    client: str = (scope.get("client") or ("",))[0]
    return client
