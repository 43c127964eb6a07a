from __future__ import annotations

from pathlib import Path

import pytest
from hub_server import LocalHub

from sae_lens_crosscoder.errors import HubError
from sae_lens_crosscoder.hub import fetch, publish_crosscoder

SECRET = "hf_" + "Ab1" * 10


def test_a_token_that_is_not_ascii_is_told_so_and_not_repeated(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{SECRET}ł")
    with pytest.raises(HubError, match=r"token of the Hub holds characters.*hf auth login") as refused:
        fetch("alice/crosscoders")
    chain, error = [], refused.value
    while error is not None:
        chain.append(str(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)  # type: ignore[assignment]
    assert SECRET not in "".join(chain)


def test_a_login_is_not_sent_to_the_host_that_a_file_is_redirected_to(
    hub: LocalHub, folder: Path, tmp_path: Path
) -> None:
    publish_crosscoder(folder, "alice/diff", id="a")
    fetch("alice/diff", "a")
    redirected = [line for line in hub.requests if line.startswith("GET /cdn/")]
    assert len(redirected) > 0
    assert hub.unknown == []  # where the server notes a login that came to its other name
