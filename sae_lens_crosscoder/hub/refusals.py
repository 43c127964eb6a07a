"""What the Hub, or the disk on the way, refuses, in words: each error of its client as one of ours, with what to do."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sae_lens_crosscoder.errors import CrosscoderError, HubError, NotFoundError, SaveError, first_line

LOG_IN = "Log in with `hf auth login`, with a token that may {right} this repository."

# The client speaks through requests (0.x), httpx (1.x) or httpx2 (2.x); its own error derives from the one in use.
_LIBRARIES = ("requests", "httpx", "httpx2")
_UNREACHABLE = (
    ConnectionError,
    TimeoutError,
    *(base for base in HfHubHTTPError.__mro__ if base.__module__.partition(".")[0] in _LIBRARIES),
)


@contextmanager
def refusals_named(what: str, repo_id: str, right: str = "read") -> Generator[None]:
    """Turn errors of the Hub's client into errors that say what to do; others pass.

    Args:
        what: What is being done, as the beginning of a sentence ("Publishing to alice/crosscoders").
        repo_id: The repository.
        right: What the login must be allowed to do to it: "read" or "write to".

    Raises:
        NotFoundError: There is no such repository, revision or file, as far as this login sees.
        HubError: Everything else that the Hub or the way to it refuses.
        SaveError: A file of this machine cannot be written or read (a full disk, a cache of somebody else).
    """
    try:
        yield
    except CrosscoderError:
        raise
    except UnicodeEncodeError:
        # Not from it: the error holds the whole header, token and all.
        raise HubError(
            f"{what} failed: the access token of the Hub holds characters that no token has (they are not ASCII). Look "
            "at HF_TOKEN, or log in anew with `hf auth login`."
        ) from None
    except Exception as error:
        chain = list(_causes(error))
        # Version 0.36 has errors of this class without an answer, and answers in errors of its HTTP library.
        answers = [cause for cause in chain if status_of(cause) is not None]
        if answers:
            raise _refusal(what, repo_id, right, answers[0]) from error
        if any(isinstance(cause, OfflineModeIsEnabled) for cause in chain):
            raise HubError(
                f"{what} failed: the Hub is switched off by HF_HUB_OFFLINE. Unset it and try again."
            ) from error
        if any(isinstance(cause, _UNREACHABLE) for cause in chain):
            raise HubError(
                f"{what} failed: the connection to the Hub broke or was never there ({first_line(chain[-1])}). Nothing "
                "was changed by halves; call again, what has been sent or received is not sent again."
            ) from error
        if isinstance(error, OSError) and error.errno is not None:
            raise SaveError(
                f"{what} failed: this machine refuses a file ({error.strerror}: {error.filename}). What the Hub sends "
                f"is kept in {constants.HF_HUB_CACHE}: make room there, or choose another folder by HF_HOME."
            ) from error
        raise


def status_of(error: BaseException) -> int | None:
    """The HTTP status that the Hub answered with."""
    response = getattr(error, "response", None)
    return None if response is None else response.status_code


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that it comes from, the first of all last."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _refusal(what: str, repo_id: str, right: str, error: BaseException) -> CrosscoderError:
    status, said = status_of(error), _said(error)
    log_in = LOG_IN.format(right=right)
    if isinstance(error, GatedRepoError):
        return HubError(f"{what} failed: {repo_id} is gated. Ask for access on its page on the Hub, then log in.")
    if isinstance(error, RevisionNotFoundError):
        return NotFoundError(f"{what} failed: {repo_id} has no such revision{said}. Name a branch, a tag or a commit.")
    if isinstance(error, EntryNotFoundError):
        return NotFoundError(f"{what} failed: a file is not in {repo_id}{said}. It may have been removed meanwhile.")
    if isinstance(error, RepositoryNotFoundError):
        return NotFoundError(
            f"{what} failed: there is no repository {repo_id}, or it is private and this login does not see it. "
            f"Check the name. {log_in}"
        )
    if status == 401:
        return HubError(f"{what} failed: the Hub does not accept the login (401{said}). {log_in}")
    if status == 403:
        return HubError(f"{what} failed: this login may not {right} {repo_id} (403{said}). {log_in}")
    if status == 412:
        return HubError(f"{what} failed: somebody else changed {repo_id} meanwhile (412{said}). Call again.")
    if status == 429:
        return HubError(f"{what} failed: the Hub had too many requests from here (429{said}). Wait and call again.")
    if status is not None and status >= 500:
        return HubError(
            f"{what} failed: the Hub is out of order ({status}{said}). Nothing was changed by halves; call again later."
        )
    return HubError(f"{what} failed: the Hub answered {status}{said or f': {first_line(error)}'}.")


def _said(error: BaseException) -> str:
    """What the Hub says itself, to stand in brackets or at the end of a sentence."""
    response = getattr(error, "response", None)
    message = None if response is None else response.headers.get("X-Error-Message")
    message = message or getattr(error, "server_message", None)
    return f": {' '.join(message.split())[:200]}" if message else ""
