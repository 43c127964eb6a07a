"""Neuronpedia's API as far as an upload needs it."""

from __future__ import annotations

import http.client
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from sae_lens_crosscoder.errors import ConfigError, UploadError, first_line

NEURONPEDIA = "https://www.neuronpedia.org"
_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_LOCAL = {"localhost", "127.0.0.1", "::1"}
_MAX_ANSWER_BYTES = 100_000_000
_TOO_MANY_REQUESTS = 429
_LATER = {408, 425, _TOO_MANY_REQUESTS, 500, 502, 503, 504}


class ApiKey:
    """An API key, which shows itself nowhere.

    Raises:
        ConfigError: What cannot be the name of an environment variable, one that is not set, or one that holds what
            cannot be a key.
    """

    def __init__(self, variable: str) -> None:
        if not _VARIABLE.fullmatch(variable):
            # Not repeated: it may be the key.
            raise ConfigError(
                "What was given is no name of an environment variable. Give the name of the one that holds the API "
                "key, such as NEURONPEDIA_API_KEY, and not the key itself."
            )
        value = os.environ.get(variable, "").strip()
        if not value:
            raise ConfigError(
                f"The environment variable {variable} is not set. Put your Neuronpedia API key there; it stands in "
                "your account's settings on neuronpedia.org."
            )
        if not value.isascii() or not value.isprintable() or " " in value:
            raise ConfigError(f"What the environment variable {variable} holds is no API key: it has blanks or signs.")
        self._value = value

    def __repr__(self) -> str:
        return "ApiKey(hidden)"

    @property
    def headers(self) -> dict[str, str]:
        """The header that authorises a request."""
        return {"x-api-key": self._value}

    def hidden_in(self, text: str) -> str:
        """The text without the key, should a server have repeated it."""
        return text.replace(self._value, "[API key]")


class TryLaterError(Exception):
    """A request that may well succeed a little later.

    Args:
        message: What happened.
        wait_s: Seconds that the service asks to wait; None if it names none.
        may_have_arrived: Whether the service may have taken what was sent all the same.
    """

    def __init__(self, message: str, wait_s: float | None = None, may_have_arrived: bool = True) -> None:
        super().__init__(message)
        self.wait_s = wait_s
        self.may_have_arrived = may_have_arrived


class NeuronpediaApi:
    """The service at one address.

    Args:
        base_url: Its address, without "/api".
        key: Whose source sets are written to.
        timeout_s: Seconds without an answer after which a request counts as lost.

    Raises:
        ConfigError: An address that is none, holds a user, or to which the key would go unencrypted over a network.
    """

    def __init__(self, base_url: str, key: ApiKey, timeout_s: float) -> None:
        if "@" in base_url:
            # Not repeated: it may hold a password. The API knows no users but by their keys.
            raise ConfigError(f"The address holds a user or a password (@). Use one such as {NEURONPEDIA}.")
        scheme, host = _scheme_and_host(base_url)
        if scheme not in ("https", "http") or not host:
            raise ConfigError(f"{base_url!r} is no web address. Use one such as {NEURONPEDIA}.")
        if scheme == "http" and host not in _LOCAL:
            raise ConfigError(f"{base_url} is not encrypted: the API key could be read on its way. Use https://.")
        self.base_url = base_url.rstrip("/")
        self._key = key
        self._timeout_s = timeout_s
        self._opener = urllib.request.build_opener(_NoRedirects)

    def upload(self, body: bytes) -> None:
        """Send a payload.

        Raises:
            TryLaterError: The service is busy or broken, or could not be reached; what was sent may have arrived.
            UploadError: It refused the payload or the key.
        """
        self._request("/api/feature/upload-batch", body)

    def has_feature(self, model_id: str, source: str, feature: Mapping[str, Any]) -> bool:
        """Whether the service holds a latent of a payload, known by its first window.

        Raises:
            TryLaterError: As for `upload`.
            UploadError: As for `upload`.
        """
        answer = self._request(f"/api/feature/{model_id}/{source}/{feature['index']}", None)
        sent = feature["activations"][0]
        held = answer.get("activations", []) if isinstance(answer, dict) else []
        return any(row.get("tokens") == sent["tokens"] and row.get("values") == sent["values"] for row in held)

    def _request(self, path: str, body: bytes | None) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json", **self._key.headers}
        request = urllib.request.Request(self.base_url + path, data=body, headers=headers)
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                return json.loads(answer.read(_MAX_ANSWER_BYTES) or b"null")
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from None
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            said = self._key.hidden_in(f"{type(reason).__name__}: {reason}")
            raise TryLaterError(f"{self.base_url} could not be reached: {said}") from None
        except ValueError as error:
            raise TryLaterError(f"{self.base_url} gave an answer that is no JSON: {first_line(error)}") from None

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        said = _message(error, self._key)
        if error.code in _LATER:
            wait = error.headers.get("Retry-After", "")
            return TryLaterError(
                f"{self.base_url} answered {error.code}: {said}",
                wait_s=float(wait) if wait.isdecimal() else None,
                may_have_arrived=error.code != _TOO_MANY_REQUESTS,
            )
        if 300 <= error.code < 400:
            place = self._key.hidden_in(error.headers.get("Location", "elsewhere"))
            return UploadError(f"{self.base_url} redirects to {place}. Give that address, without /api, as --base-url.")
        advice = {
            400: "The payload breaks a rule that the service has and neuronpedia-validate has not.",
            401: "The API key is missing or wrong: it stands in your account's settings on neuronpedia.org.",
            403: "The API key may not write there: the source set must be yours.",
            404: "There is no such address: see --base-url.",
            413: "The payload is too large for the service.",
        }
        return UploadError(f"{self.base_url} answered {error.code}: {said} {advice.get(error.code, '')}".rstrip())


def _scheme_and_host(address: str) -> tuple[str, str | None]:
    """Both parts of a web address; no host where its brackets or its port are none."""
    try:
        parts = urllib.parse.urlsplit(address)
        _ = parts.port
    except ValueError:
        return "", None
    return parts.scheme, parts.hostname


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Answers with a redirect are errors: the key must not go to another address, nor a POST turn into a GET."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> None:
        return None

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _message(error: urllib.error.HTTPError, key: ApiKey) -> str:
    try:
        # Before anything is cut off: half a key is no key that can be found and hidden.
        text = key.hidden_in(error.read(2_000).decode("utf-8", "replace"))
    except (OSError, http.client.HTTPException):
        text = ""
    try:
        answer = json.loads(text)
    except ValueError:
        return " ".join(text.split())[:200] or str(error.reason)
    if not isinstance(answer, dict):
        return str(error.reason)
    place = f" (at {answer['path']})" if "path" in answer else ""
    return f"{answer.get('error', error.reason)}{place}."
