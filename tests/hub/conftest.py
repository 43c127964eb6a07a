from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import LocalHub, local_hub
from huggingface_hub import constants, file_download


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A Hub of this machine that the client of this process talks to, logged in as alice, with an empty cache."""
    with local_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        # Version 0.36 holds a copy of it where it is used.
        for module in (constants, file_download):
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "stored_tokens"))
        monkeypatch.setenv("HF_TOKEN", "hf_writer")
        # The client waits between its tries for up to 23 seconds.
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        yield server
        if server.n_failed:
            # Version 0.36 leaves sockets of refused downloads to the collector, which would blame a later test.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()
        assert not server.unknown, "the client asks for what the local Hub does not know"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a finished run, made of models and data sets of the Hub."""
    # Here, because what conftest.py imports is imported before jaxtyping can check its signatures.
    from crosscoder_folders import crosscoder_folder

    return crosscoder_folder(tmp_path / "run")
