from __future__ import annotations

import json
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from neuronpedia_exports import export
from neuronpedia_server import KEY, Server, running_server

from sae_lens_crosscoder.dashboards.neuronpedia import ApiKey, UploadConfig, UploadSummary, upload_payloads
from sae_lens_crosscoder.dashboards.neuronpedia.upload import LEDGER
from sae_lens_crosscoder.errors import ConfigError, DataError, NotFoundError, UploadError


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The payloads of both models: two files, nine latents each."""
    out = tmp_path_factory.mktemp("exported") / "out"
    export(out)
    return out / "payloads"


@pytest.fixture
def payloads(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "payloads"))


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as running:
        yield running


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> ApiKey:
    monkeypatch.setenv("NP_KEY", KEY)
    return ApiKey("NP_KEY")


@pytest.fixture
def waits() -> list[float]:
    """Seconds that an upload would have waited."""
    return []


def upload(folder: Path, key: ApiKey, server: Server, waits: list[float], n_tries: int = 4) -> UploadSummary:
    return upload_payloads(folder, key, UploadConfig(server.url, n_tries=n_tries, timeout_s=20), waits.append)


def test_all_payloads_arrive_whole_and_pass_the_rules_of_the_api(
    payloads: Path, key: ApiKey, server: Server, waits: list[float]
) -> None:
    assert upload(payloads, key, server, waits) == UploadSummary(n_uploaded=2, n_before=0, n_latents=18)
    files = sorted(payloads.rglob("payload-*.json"))
    assert server.uploads == [("/api/feature/upload-batch", file.read_bytes()) for file in files]
    expected = [
        (f"{body['modelId']}/{body['source']}/{feature['index']}", window)
        for body in (json.loads(file.read_bytes()) for file in files)
        for feature in body["features"]
        for window in feature["activations"]
    ]
    assert server.windows == expected
    assert waits == []


def test_what_was_accepted_is_not_sent_again(payloads: Path, key: ApiKey, server: Server, waits: list[float]) -> None:
    upload(payloads, key, server, waits)
    assert upload(payloads, key, server, waits) == UploadSummary(n_uploaded=0, n_before=2, n_latents=18)
    assert len(server.uploads) == 2


def test_what_has_changed_since_is_sent_again(payloads: Path, key: ApiKey, server: Server, waits: list[float]) -> None:
    upload(payloads, key, server, waits)
    file = next(payloads.rglob("payload-0.json"))
    file.write_bytes(file.read_bytes().replace(b'"density": 1.0', b'"density": 0.9'))
    assert upload(payloads, key, server, waits).n_uploaded == 1


def test_another_address_has_a_record_of_its_own(
    payloads: Path, key: ApiKey, server: Server, waits: list[float]
) -> None:
    upload(payloads, key, server, waits)
    with running_server() as other:
        assert upload(payloads, key, other, waits).n_uploaded == 2


@pytest.mark.parametrize("failure", [500, 502, 503, "break"])
def test_a_failure_of_the_moment_is_tried_again_with_growing_waits(
    payloads: Path, key: ApiKey, server: Server, waits: list[float], failure: int | str
) -> None:
    server.plan = [failure, failure, failure]
    assert upload(payloads, key, server, waits).n_uploaded == 2
    assert waits == [1.0, 2.0, 4.0]
    assert len(server.uploads) == 5
    assert len(server.questions) == 3


def test_the_service_says_how_long_to_wait(payloads: Path, key: ApiKey, server: Server, waits: list[float]) -> None:
    server.plan = [429, 429]
    server.headers = {"Retry-After": "17"}
    upload(payloads, key, server, waits)
    server.headers = {"Retry-After": "100000"}
    (payloads / LEDGER).unlink()
    server.plan = [429]
    upload(payloads, key, server, waits)
    assert waits == [17.0, 17.0, 120.0]
    assert server.questions == []


def test_a_payload_that_arrived_before_the_connection_broke_is_not_sent_twice(
    payloads: Path, key: ApiKey, server: Server, waits: list[float]
) -> None:
    server.plan = ["lose"]
    assert upload(payloads, key, server, waits).n_uploaded == 2
    assert len(server.uploads) == 2
    assert server.questions == ["/api/feature/tiny-base/1-crosscoder-res/0"]
    features = [f for file in payloads.rglob("payload-*.json") for f in json.loads(file.read_bytes())["features"]]
    assert len(server.windows) == sum(len(feature["activations"]) for feature in features)


def test_an_upload_that_was_broken_off_goes_on_where_it_was(
    payloads: Path, key: ApiKey, server: Server, waits: list[float]
) -> None:
    server.plan = ["ok", *["break"] * 4]
    with pytest.raises(UploadError, match=r"tiny-chat.*payload-0\.json was not accepted in 4 tries"):
        upload(payloads, key, server, waits)
    n_before = len(server.uploads)
    assert upload(payloads, key, server, waits) == UploadSummary(n_uploaded=1, n_before=1, n_latents=18)
    assert len(server.uploads) == n_before + 1


def test_an_upload_that_died_after_sending_asks_before_it_sends_again(
    payloads: Path, key: ApiKey, server: Server, waits: list[float]
) -> None:
    server.plan = ["lose"]
    with pytest.raises(UploadError):
        upload(payloads, key, server, waits, n_tries=1)
    assert upload(payloads, key, server, waits).n_uploaded == 2
    assert len(server.uploads) == 2


def test_old_latents_at_the_same_index_are_not_taken_for_the_payload(
    payloads: Path, key: ApiKey, server: Server, waits: list[float]
) -> None:
    server.windows = [("tiny-base/1-crosscoder-res/0", {"tokens": ["x"], "values": [1.0]})]
    server.plan = ["break"]
    upload(payloads, key, server, waits)
    assert len(server.uploads) == 3


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "neuronpedia-validate has not"),
        (401, "API key is missing or wrong"),
        (403, "must be yours"),
        (404, "no such address"),
        (413, "too large"),
        (307, "redirects to https://elsewhere.org"),
        (302, "redirects to https://elsewhere.org"),
    ],
)
def test_a_refusal_is_final_and_says_what_to_do(
    payloads: Path, key: ApiKey, server: Server, waits: list[float], status: int, message: str
) -> None:
    server.plan = [status]
    server.headers = {"Location": "https://elsewhere.org"}
    with pytest.raises(UploadError, match=rf"payload-0\.json: .*{message}"):
        upload(payloads, key, server, waits)
    assert len(server.uploads) == 1
    assert waits == []


def test_the_key_shows_nowhere(
    payloads: Path,
    server: Server,
    waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("NP_KEY", "sk-np-wrong")
    key = ApiKey("NP_KEY")
    with pytest.raises(UploadError) as refused:
        upload(payloads, key, server, waits)
    server.plan = [500] * 4
    server.answer = "I was sent sk-np-wrong"
    with pytest.raises(UploadError, match=r"I was sent \[API key\]") as failed:
        upload(payloads, key, server, waits)
    server.plan = [302]
    server.headers = {"Location": "https://elsewhere.org/?key=sk-np-wrong"}
    with pytest.raises(UploadError, match=r"elsewhere.org/\?key=\[API key\]") as redirected:
        upload(payloads, key, server, waits)
    server.plan = ["babble"] * 4
    with pytest.raises(UploadError, match=r"sent \[API key\]") as babbled:
        upload(payloads, key, server, waits)
    printed = capfd.readouterr()
    written = [file.read_text() for file in payloads.rglob("*.json")]
    traces = ["".join(traceback.format_exception(error.value)) for error in (refused, failed, redirected, babbled)]
    shown = [*traces, repr(key), str(key)]
    assert not [text for text in [*written, *shown, *printed] if "sk-np-wrong" in text]


def test_a_missing_or_broken_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NP_KEY", raising=False)
    with pytest.raises(ConfigError, match="environment variable NP_KEY is not set"):
        ApiKey("NP_KEY")
    for value in ("two words", "two\nlines", "schl\u00fcssel"):
        monkeypatch.setenv("NP_KEY", value)
        with pytest.raises(ConfigError, match="is no API key") as refused:
            ApiKey("NP_KEY")
        assert value not in str(refused.value)


def test_a_key_in_the_place_of_its_variable_is_not_repeated() -> None:
    with pytest.raises(ConfigError, match="and not the key itself") as refused:
        ApiKey("sk-np-secret")
    assert "sk-np-secret" not in str(refused.value)


def test_an_address_with_a_user_is_refused_and_not_repeated(payloads: Path, key: ApiKey) -> None:
    with pytest.raises(ConfigError, match="holds a user or a password") as refused:
        upload_payloads(payloads, key, UploadConfig("https://alice:secret@neuronpedia.org"))
    assert "secret" not in str(refused.value)
    assert not (payloads / "uploaded.json").exists()


@pytest.mark.parametrize(
    "url",
    [
        "http://neuronpedia.org",
        "neuronpedia.org",
        "ftp://neuronpedia.org",
        "https://",
        "https://[neuronpedia.org",
        "https://neuronpedia.org:https",
    ],
)
def test_the_key_goes_over_no_open_line(payloads: Path, key: ApiKey, url: str) -> None:
    with pytest.raises(ConfigError, match=r"not encrypted|no web address"):
        upload_payloads(payloads, key, UploadConfig(url))


def test_bad_payloads_are_found_before_anything_is_sent(
    payloads: Path, key: ApiKey, server: Server, waits: list[float]
) -> None:
    file = sorted(payloads.rglob("payload-0.json"))[1]
    payload = json.loads(file.read_text())
    payload["features"][0]["activations"][0]["tokens"][0] = ""
    file.write_text(json.dumps(payload))
    with pytest.raises(DataError, match=r"Nothing was sent[^$]*an empty token"):
        upload(payloads, key, server, waits)
    assert server.uploads == []


def test_a_broken_record_stops_the_upload(payloads: Path, key: ApiKey, server: Server, waits: list[float]) -> None:
    (payloads / LEDGER).write_text("[1")
    with pytest.raises(DataError, match="what has been uploaded, cannot be read"):
        upload(payloads, key, server, waits)
    assert server.uploads == []


def test_a_folder_without_payloads_is_named(tmp_path: Path, key: ApiKey) -> None:
    with pytest.raises(NotFoundError):
        upload_payloads(tmp_path / "none", key)
    with pytest.raises(DataError, match=r"no payload-\*\.json"):
        upload_payloads(tmp_path, key)


def test_a_server_that_is_not_there_is_named(payloads: Path, key: ApiKey, waits: list[float]) -> None:
    with running_server() as server:
        pass
    with pytest.raises(UploadError, match="could not be reached"):
        upload(payloads, key, server, waits)


@pytest.mark.parametrize("values", [{"n_tries": 0}, {"timeout_s": 0.0}, {"first_wait_s": -1.0}])
def test_impossible_patience_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        UploadConfig(**values)  # pyright: ignore[reportArgumentType]
