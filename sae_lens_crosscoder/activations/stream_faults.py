"""What an error of a stream means: the way to it broke for a moment, a shard cannot be decoded, or it is refused."""

from __future__ import annotations

import asyncio
import errno
import http.client
import json
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from typing import Literal

import pyarrow as pa
from datasets.exceptions import DatasetGenerationError

from sae_lens_crosscoder.errors import CrosscoderError

Fault = Literal["broken", "corrupt", "final"]
"""What may be gone if one tries again, what a file's bytes are to blame for, and what stays as it is."""

_TRY_AGAIN = {408, 425, 429}
"""HTTP statuses below 500 that pass: a timeout of the server, too early, too many requests."""

_BROKEN = (ConnectionError, TimeoutError, asyncio.TimeoutError, EOFError, http.client.HTTPException)
_CORRUPT = (pa.ArrowInvalid, json.JSONDecodeError, UnicodeDecodeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
# OSErrors that a network or a network file system gives for a moment; others (no such file, no permission, a full
# disk) stay as they are.
_PASSING = {
    *(errno.EIO, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.ESTALE, errno.ENETDOWN, errno.ENETUNREACH),
    *(errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EPIPE),
}
_LIBRARIES = ("aiohttp", "httpx", "httpx2", "httpcore", "requests", "urllib3", "fsspec", "botocore", "aiobotocore")
"""Libraries whose errors without a status are those of the way to a server."""
_OFFLINE = "OfflineModeIsEnabled"  # of datasets and of huggingface_hub: who switched the Hub off means it
_OF_DECODING = (
    *("corrupt", "unexpected end of stream", "deserialize thrift", "not a gzipped file", "invalid data stream"),
    "compressed file ended before",
)
"""What pyarrow and the compressions say, by bare OSErrors and EOFErrors, of bytes that are no file of theirs."""


def fault_of(error: BaseException) -> Fault:
    """What an error that came while a data set was read means, by the error itself and by those it comes from.

    A status of a server counts before everything else; then what Arrow, JSON and the compressions say of bytes.
    """
    causes = list(_causes(error))
    if any(isinstance(cause, CrosscoderError) or type(cause).__name__ == _OFFLINE for cause in causes):
        return "final"
    statuses = [status for cause in causes if (status := _status(cause)) is not None]
    if statuses:
        return "broken" if statuses[0] in _TRY_AGAIN or statuses[0] >= 500 else "final"
    if any(isinstance(cause, _CORRUPT) or _is_of_decoding(cause) for cause in causes):
        return "corrupt"
    if any(_is_of_network(cause) for cause in causes):
        return "broken"
    return "corrupt" if isinstance(error, DatasetGenerationError) else "final"


def is_refusal(error: BaseException) -> bool:
    """Whether a server or the system refused to give the data, and not code that went wrong."""
    return isinstance(error, OSError) or any(_status(cause) is not None for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _status(error: BaseException) -> int | None:
    """The HTTP status that a server answered with, as aiohttp or as requests and httpx hold it."""
    response = getattr(error, "response", None)
    status = getattr(error, "status", None) if response is None else getattr(response, "status_code", None)
    return status if isinstance(status, int) and status >= 400 else None


def _is_of_decoding(error: BaseException) -> bool:
    said = str(error).lower()
    return isinstance(error, (OSError, EOFError)) and any(words in said for words in _OF_DECODING)


def _is_of_network(error: BaseException) -> bool:
    if isinstance(error, _BROKEN):
        return True
    if any(base.__module__.partition(".")[0] in _LIBRARIES for base in type(error).__mro__):
        return not isinstance(error, (FileNotFoundError, PermissionError))
    # Libraries raise bare OSErrors, without a number, for what a server did not send to its end.
    return isinstance(error, OSError) and (error.errno in _PASSING or (type(error) is OSError and error.errno is None))
