"""What goes wrong between us and the Hugging Face Hub, each as an error of ours that says what to do. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import HubError, IntegrityError, KdzooError, UsageError

AGAIN = "run it again in a few minutes; what is here already is not fetched again"
TOKEN = "hf auth login, or HF_TOKEN, or --token"


class Unreachable(HubError):
    """There is no way to the server."""


def damaged(repo_id: str, name: str) -> IntegrityError:
    return IntegrityError(
        f"{name} of {repo_id} is not the file that was announced (size or sha256); nothing of it was kept",
        hint="fetch it again; if that does not help, it was changed after it was published: tell its owner",
    )


def too_large(repo_id: str, name: str, size: int, most: int) -> IntegrityError:
    return IntegrityError(
        f"{name} of {repo_id} has {size:,} bytes or more, and {most:,} at most were expected; nothing of it was kept",
        hint="do not use it, and tell whoever published it",
    )


@contextmanager
def hub_errors(repo_id: str, revision: str = "", doing: str = "read") -> Iterator[None]:
    """What huggingface_hub raises, as a `HubError` that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except KdzooError:
        raise
    except errors.HFValidationError as error:
        raise UsageError(str(error).splitlines()[0], hint="a repository is org/name") from None
    except Exception as error:
        cause: BaseException | None = error
        http_error: Any = errors.HTTPError  # type: ignore[attr-defined]
        while cause is not None and not isinstance(cause, (http_error, errors.OfflineModeIsEnabled)):
            cause = cause.__cause__  # uploads and lookups wrap what the server said
        if isinstance(cause, errors.OfflineModeIsEnabled):
            raise HubError(f"HF_HUB_OFFLINE forbids to ask for {repo_id}", hint="unset it") from None
        if isinstance(cause, errors.HfHubHTTPError):
            raise refusal(cause, repo_id, revision, doing) from None
        if cause is None and isinstance(error, errors.LocalTokenNotFoundError):
            raise HubError("there is no token on this machine", hint=TOKEN) from None
        if cause is None and not (isinstance(error, OSError) and error.errno is None):
            raise
        reason = str(cause or error).splitlines() or [type(error).__name__]
        raise Unreachable(
            f"the connection to the Hub failed ({reason[0][:200]})", hint=f"look at network, proxy and HF_ENDPOINT; {AGAIN}"
        ) from None


def refusal(error: Any, repo_id: str, revision: str, doing: str) -> HubError:
    """The error for an answer of the Hub that is no success."""
    from huggingface_hub import errors

    status = error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        return HubError(f"{repo_id} is open only to those whom its owners let in", hint=f"ask on its page, then {TOKEN}")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{repo_id} has no revision '{revision}'", hint=f"leave @{revision} out, or look at its page")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        name = error.response.url.path.rpartition("/")[2]
        return HubError(f"{repo_id} has no file {name} at {revision}", hint="kdzoo push publishes whole packages")
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        return HubError(f"{repo_id} does not exist, or is private and the token does not open it", hint=f"its name; {TOKEN}")
    if status == 401:
        return HubError(f"the Hub does not know the token that was sent for {repo_id}", hint=TOKEN)
    if status == 403:
        return HubError(f"the token may not {doing} {repo_id}", hint=f"a token that may {doing} there: {TOKEN}")
    if status == 429:
        return HubError("the Hub has had too many requests from here", hint=AGAIN)
    if status in (409, 412):
        return HubError(f"{repo_id} was changed by someone else meanwhile", hint="run it again")
    if status >= 500:
        return HubError(f"the Hub is out of order: it answers {status}", hint=AGAIN)
    reason = " ".join(str(error.server_message or error).split())[:300]
    return HubError(f"the Hub refuses to {doing} {repo_id}: {status}, {reason}", hint="kdzoo doctor; HF_DEBUG=1 shows requests")
