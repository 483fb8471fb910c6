"""Errors of the Hub's client in words that say what to do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

LOGIN = "sign in with `hf auth login`, or set HF_TOKEN"
TOKENS = "https://huggingface.co/settings/tokens"


class PublishError(RuntimeError):
    """Something on the way to the Hub, or there, went wrong; the message says what to do."""


@contextlib.contextmanager
def explain(doing: str, repo_id: str) -> Iterator[None]:
    """Turn errors of the Hub's client into a `PublishError`.

    Args:
        doing: what is being done, such as "uploading to".
        repo_id: the repository it is done with.
    """
    try:
        yield
    except PublishError:
        raise
    except Exception as error:
        message = _message(error, repo_id)
        if message is None:
            raise
        raise PublishError(f"{doing} {repo_id} failed: {message}") from error


def _message(error: BaseException, repo_id: str) -> str | None:
    """What to do about an error, or None where it is not the Hub's."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    namespace = repo_id.split("/")[0]
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub is not asked: unset it"
    if isinstance(error, HFValidationError):
        return f"{error}: a repository is called org/name"
    if isinstance(error, LocalTokenNotFoundError):
        return f"there is no token: {LOGIN}"
    if isinstance(error, GatedRepoError):
        return f"it is gated: ask for access on its page, and {LOGIN}"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no such revision ({_said(error)})"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"there is no such repository, or it is private and this token may not see it: check the name, or {LOGIN}"
        )
    if status == 401 or (status is None and "Invalid user token" in str(error)):
        return f"the token is not valid: {LOGIN}"
    if status == 403:
        return (
            f"this token may not write there ({_said(error)}): it must be one with write access ({TOKENS}) of "
            f"{namespace!r} or of one of its members; to others' repositories propose a change with --create-pr"
        )
    if status == 412:
        return "somebody else changed it meanwhile, and nothing was published: run it again"
    if status == 429:
        return "too many requests: wait a few minutes and run it again; what was uploaded is not sent again"
    if status is not None and status >= 500:
        return f"the Hub is in trouble (status {status}), and nothing was published: run it again later"
    if isinstance(error, HfHubHTTPError):
        return _said(error)
    if _is_network(error):
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        return (
            f"{endpoint} cannot be reached, or the connection broke ({type(error).__name__}); nothing was published: "
            "check the network and run it again, large files that arrived are not sent again"
        )
    # The client wraps what went wrong with one file.
    return _message(error.__cause__, repo_id) if isinstance(error, RuntimeError) and error.__cause__ else None


def _is_network(error: BaseException) -> bool:
    # The client's HTTP library, which has changed before, is not ours to import.
    library = type(error).__module__.split(".")[0]
    return isinstance(error, ConnectionError | TimeoutError) or library in ("httpx", "httpx2", "httpcore", "requests")


def _said(error: HfHubHTTPError) -> str:
    """The server's own words, or the client's first line."""
    return str(error.server_message or next((line for line in str(error).splitlines() if line.strip()), "no reason"))
