"""Upload of payloads to Neuronpedia, which goes on where it was broken off."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sae_lens_crosscoder.dashboards.neuronpedia.api import NEURONPEDIA, ApiKey, NeuronpediaApi, TryLaterError
from sae_lens_crosscoder.dashboards.neuronpedia.payload_check import payload_files
from sae_lens_crosscoder.dashboards.neuronpedia.validator import validate_payloads
from sae_lens_crosscoder.errors import ConfigError, DataError, UploadError, first_line
from sae_lens_crosscoder.files import existing_folder, write_json

LEDGER = "uploaded.json"
_SENT, _ACCEPTED = "sent", "accepted"


@dataclass(frozen=True)
class UploadConfig:
    """Where payloads go, and how patiently.

    Raises:
        ConfigError: A number that is too small.
    """

    base_url: str = NEURONPEDIA
    """Address of the service."""

    n_tries: int = 8
    """How often one payload is sent before the upload gives up."""

    first_wait_s: float = 1.0
    """Seconds before the second try; each further wait is twice as long."""

    longest_wait_s: float = 120.0
    """Seconds that no wait exceeds, also where the service asks for more."""

    timeout_s: float = 300.0
    """Seconds without an answer after which a payload counts as lost."""

    def __post_init__(self) -> None:
        if self.n_tries < 1 or self.first_wait_s < 0 or self.longest_wait_s < 0 or self.timeout_s <= 0:
            raise ConfigError("An upload needs at least one try, waits of 0 or more and a timeout above 0 seconds.")


@dataclass(frozen=True)
class UploadSummary:
    """What an upload did."""

    n_uploaded: int
    """Payloads that were accepted now."""

    n_before: int
    """Payloads that had been accepted before."""

    n_latents: int
    """Latents in all of them."""


def upload_payloads(
    folder: str | Path,
    key: ApiKey,
    config: UploadConfig | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> UploadSummary:
    """Send all payloads of a folder to the upload API, in order, and remember in `uploaded.json` which are accepted.

    The models and source sets must exist on Neuronpedia, and the source sets must be the key's owner's. What fails for
    the moment (no connection, 429, 5xx) is tried again with growing waits. An upload that is called again skips what
    was accepted. The API would store the windows of a payload that comes twice a second time; so before a payload
    whose fate is unknown is sent again, the service is asked whether it arrived.

    Args:
        folder: Folder with `payload-*.json` files, at any depth.
        key: The API key.
        config: Where to send, and how patiently; None for Neuronpedia.
        sleep: Waits for a number of seconds.

    Raises:
        NotFoundError: There is no such folder.
        ConfigError: An address that is none, or is not encrypted.
        DataError: No payloads, payloads with problems (nothing is sent), or a broken `uploaded.json`.
        UploadError: The service refused the key or a payload, or stayed out of reach.
        SaveError: `uploaded.json` could not be written.
    """
    config = config or UploadConfig()
    root = existing_folder(folder, "folder of payloads")
    api = NeuronpediaApi(config.base_url, key, config.timeout_s)
    ledger = _Ledger(root / LEDGER, api.base_url)
    files = payload_files(root)
    problems = validate_payloads(root)
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:5])
        raise DataError(f"Nothing was sent: Neuronpedia would refuse these payloads.\n{shown}")
    n_before = n_latents = 0
    for file in tqdm(files, desc="Uploading", unit="payload", disable=None):
        payload = _Payload(file)
        n_latents += len(payload.content["features"])
        if ledger.state(payload) == _ACCEPTED:
            n_before += 1
        else:
            _send(payload, api, ledger, config, sleep)
    return UploadSummary(len(files) - n_before, n_before, n_latents)


class _Payload:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.body = file.read_bytes()
        self.checksum = hashlib.sha256(self.body).hexdigest()
        self.content: dict[str, Any] = json.loads(self.body)


class _Ledger:
    """Which payloads were sent to an address, and which it accepted, by checksum; on disk at every change."""

    def __init__(self, path: Path, base_url: str) -> None:
        self._path = path
        self._states: dict[str, dict[str, str]] = {}
        if path.exists():
            try:
                self._states = {url: dict(states) for url, states in json.loads(path.read_text("utf-8")).items()}
            except (OSError, ValueError, AttributeError, TypeError) as error:
                raise DataError(
                    f"{path}, which says what has been uploaded, cannot be read: {first_line(error)}. If you delete "
                    "it, everything is uploaded again, and what was accepted would be there twice."
                ) from error
        self._own = self._states.setdefault(base_url, {})

    def state(self, payload: _Payload) -> str | None:
        return self._own.get(payload.checksum)

    def note(self, payload: _Payload, state: str | None) -> None:
        if state is None:
            self._own.pop(payload.checksum, None)
        else:
            self._own[payload.checksum] = state
        write_json(self._path, self._states)


def _send(
    payload: _Payload, api: NeuronpediaApi, ledger: _Ledger, config: UploadConfig, sleep: Callable[[float], object]
) -> None:
    failure = TryLaterError("")
    model_id, source = payload.content["modelId"], payload.content["source"]
    for attempt in range(config.n_tries):
        if attempt:
            wait = config.first_wait_s * 2 ** (attempt - 1) if failure.wait_s is None else failure.wait_s
            sleep(min(wait, config.longest_wait_s))
        try:
            is_unknown = ledger.state(payload) == _SENT
            if not is_unknown or not api.has_feature(model_id, source, payload.content["features"][0]):
                ledger.note(payload, _SENT)
                api.upload(payload.body)
            ledger.note(payload, _ACCEPTED)
            return
        except TryLaterError as error:
            failure = error
            if not error.may_have_arrived:
                ledger.note(payload, None)
        except UploadError as error:
            ledger.note(payload, None)
            raise UploadError(f"{payload.file}: {error}") from None
    raise UploadError(
        f"{payload.file} was not accepted in {config.n_tries} tries: {failure}. Neuronpedia also answers 500 if the "
        f"model {model_id} has no source {source}, or its source set is not yours: see its page. Call the upload again "
        "to go on; what was accepted is not sent again."
    )
