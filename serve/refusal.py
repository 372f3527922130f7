"""Why a request is not answered: one exception, with the status of HTTP and the code of gRPC for each kind. Torch-free."""

from __future__ import annotations

from enum import Enum


class Reason(Enum):
    """HTTP status, name of the gRPC code, whether to come back later."""

    BAD = (400, "INVALID_ARGUMENT", False)
    NO_TOKEN = (401, "UNAUTHENTICATED", False)
    UNKNOWN = (404, "NOT_FOUND", False)
    TOO_SLOW = (408, "DEADLINE_EXCEEDED", False)
    TOO_LARGE = (413, "INVALID_ARGUMENT", False)
    NO_IMAGE = (415, "INVALID_ARGUMENT", False)
    LONG_HEADERS = (431, "INVALID_ARGUMENT", False)
    TOO_MANY = (429, "RESOURCE_EXHAUSTED", True)
    FAILED = (500, "INTERNAL", False)
    BUSY = (503, "UNAVAILABLE", True)
    LATE = (504, "DEADLINE_EXCEEDED", False)

    def __init__(self, status: int, grpc: str, later: bool) -> None:
        self.status, self.grpc, self.later = status, grpc, later


class Refusal(Exception):
    """`what` is the sentence that the client reads; `retry_after`, in seconds, goes with those that may come back."""

    def __init__(self, reason: Reason, what: str, retry_after: int = 1) -> None:
        super().__init__(what)
        self.reason, self.what, self.retry_after = reason, what, retry_after


def unforeseen() -> Refusal:
    """Of what no client has to do with."""
    return Refusal(Reason.FAILED, "something failed that should not; the server's log says more")
