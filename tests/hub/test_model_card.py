from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from crosscoder_folders import D_SAE, HOOK, crosscoder_folder, make_crosscoder
from huggingface_hub import ModelCard

from sae_lens_crosscoder.errors import DataError
from sae_lens_crosscoder.hub import BundleOptions, Place, publish_crosscoder
from sae_lens_crosscoder.hub.bundle import Bundle
from sae_lens_crosscoder.hub.model_card import base_models, card_with

PLACE = Place("alice/diff", "first")


def card_of(folder: Path, card: str | None = None, license: str | None = None, place: Place = PLACE) -> str:
    return card_with(card, Bundle(folder, BundleOptions()), place, license)


def metadata_of(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_metadata_are_those_by_which_the_hub_finds_it(folder: Path) -> None:
    assert metadata_of(card_of(folder, license="gemma")) == {
        "base_model": ["google/gemma-2-2b", "google/gemma-2-2b-it"],
        "datasets": ["monology/pile-uncopyrighted", "lmsys/lmsys-chat-1m"],
        "library_name": "saelens",
        "license": "gemma",
        "tags": ["saelens", "sparse-autoencoder", "crosscoder", "model-diffing"],
    }


def test_the_card_says_what_the_folder_says(folder: Path) -> None:
    card = card_of(folder)
    for line in (
        f"A crosscoder with {D_SAE} latents, one dictionary over 2 sources side by side:",
        f"| base | google/gemma-2-2b | {HOOK} | 8 | 0.5 |",
        f"| chat | google/gemma-2-2b-it | {HOOK} | 8 | 0.25 |",
        "| trained as | batchtopk_crosscoder |",
        "| saved as | jumprelu |",
        "| k | 100 |",
        "| training tokens | 819200 |",
        "| pile | monology/pile-uncopyrighted |  | train | 0.25 |",
        "| chats | lmsys/lmsys-chat-1m |  | train | 0.75 |",
        "20,160 held-out tokens, L0 99.5, 3 latents silent on them.",
        "| source | explained variance | CE score | KL score |",
        "| base | 0.91 | 0.98 | 0.97 |",
        "| chat | 0.875 | 0.98 | 0.97 |",
        'sae = SAE.from_pretrained("alice/diff", "first")',
        'sae = load_crosscoder("alice/diff", "first")',
    ):
        assert line in card.splitlines(), line
    assert "(Kissane et al. 2024)" in card


def test_classes_are_those_of_the_published_table_with_its_thresholds(folder: Path) -> None:
    card = card_of(folder)
    for line in ("| base-only | 2 |", f"| shared | {D_SAE - 3} |", "| chat-only | 1 |", "| dead | 0 |"):
        assert line in card.splitlines(), line
    assert "exclusive above 0.95." in card.splitlines()


def test_without_a_table_the_classes_are_read_off_the_decoder(folder: Path) -> None:
    (folder / "latents.parquet").unlink()
    card = card_of(folder)
    # In units of the activations' norms, latent by latent.
    norms = make_crosscoder().W_dec.detach().reshape(D_SAE, 2, 8).norm(dim=-1) * 2.0**-1
    norms[:, 1] /= 2
    shares = norms[:, 1] / norms.sum(dim=1)
    n_shared = int(((shares > 0.3) & (shares < 0.7)).sum())
    assert 0 < n_shared < D_SAE
    assert f"| shared | {n_shared} |" in card.splitlines()
    assert "its share of the decoder norm &#62; 0.9" in card


def test_what_the_folder_does_not_say_is_left_out(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name not in ("cfg.json", "sae_weights.safetensors"):
            path.unlink()
    card = card_of(folder)
    for absent in ("### Metrics", "### Data", "license", "datasets", "training tokens", "Explained variance"):
        assert absent not in card, absent
    assert "### Latents by class" in card


def test_what_was_not_measured_is_no_zero_and_no_error(folder: Path) -> None:
    nothing: dict[str, object] = {"n_tokens": None, "l0": None, "sources": {"base": {"ce_loss_score": None}, "chat": 3}}
    (folder / "metrics.json").write_text(json.dumps(nothing))
    assert "### Metrics" not in card_of(folder)
    (folder / "metrics.json").write_text(json.dumps({**nothing, "l0": 3.0}))
    assert "L0 3." in card_of(folder).splitlines()
    for name in ("latents.parquet", "sparsity.safetensors"):
        (folder / name).unlink()
    card = card_of(folder)
    assert "### Latents by class" in card
    assert "| dead |" not in card


def test_a_converted_crosscoder_is_said_to_be_one(folder: Path) -> None:
    assert "Converted from" not in card_of(folder)
    cfg = json.loads((folder / "cfg.json").read_text())
    origin = {"format": "kissane", "repo_id": "ckkissane/<b>diff", "id": None, "revision": None}
    cfg["metadata"]["converted_from"] = origin
    (folder / "cfg.json").write_text(json.dumps(cfg))
    expected = "Converted from a checkpoint of another system (format kissane, repo id ckkissane/&#60;b&#62;diff)"
    assert expected in card_of(folder)


def test_a_section_is_replaced_and_what_was_written_by_hand_stays(folder: Path, tmp_path: Path) -> None:
    by_hand = (
        "---\nlicense: mit\nlanguage: en\nbase_model: google/gemma-2-2b\ntags:\n- mine\n---\n\n# Mine\n\nBy hand.\n"
    )
    first = card_of(folder, by_hand)
    other = card_of(crosscoder_folder(tmp_path / "other", seed=1), first, place=Place("alice/diff", "other"))
    (folder / "metrics.json").write_text(json.dumps({"l0": 7.5}))
    again = card_of(folder, other + "\nThe end.\n")
    assert again.startswith("---\n")
    assert "# Mine\n\nBy hand." in again
    assert again.rstrip().endswith("The end.")
    assert again.count("<!-- crosscoder: first -->") == again.count("<!-- crosscoder: other -->") == 1
    assert again.count("L0 7.5") == 1
    assert again.count("L0 99.5") == 1
    metadata = metadata_of(again)
    assert (metadata["license"], metadata["language"]) == ("mit", "en")
    assert metadata["base_model"] == ["google/gemma-2-2b", "google/gemma-2-2b-it"]
    assert metadata["tags"] == ["mine", "saelens", "sparse-autoencoder", "crosscoder", "model-diffing"]
    assert card_of(folder, again) == again


def test_a_section_without_its_end_does_not_swallow_what_comes_after_it(folder: Path) -> None:
    whole = card_of(folder) + "\nBy hand.\n"
    damaged = whole.replace("<!-- end of crosscoder: first -->", "")
    again = card_of(folder, card_of(folder, damaged, place=Place("alice/diff", "other")))
    assert card_of(folder, again) == again
    assert "By hand." in again
    assert "<!-- crosscoder: other -->" in again


@pytest.mark.parametrize("broken", ["---\nlicense: [\n---\n", "---\n- a\n- list\n---\n"])
def test_a_card_whose_metadata_cannot_be_read_is_not_overwritten(folder: Path, broken: str) -> None:
    with pytest.raises(DataError, match=r"README.md of the repository has metadata that cannot be read"):
        card_of(folder, broken)


HOSTILE = '"><script>alert(1)</script>\n---\nlicense: evil\n| x | [y](https://z) <!-- end of crosscoder: first -->'


def test_hostile_names_are_shown_and_do_nothing(tmp_path: Path) -> None:
    datasets = [{"path": HOSTILE, "label": f"b{HOSTILE}", "split": f"c{HOSTILE}", "name": f"d{HOSTILE}"}]
    folder = crosscoder_folder(tmp_path / "run", models=(f"a{HOSTILE}", "google/gemma-2-2b-it"), datasets=datasets)
    card = card_of(folder, license="mit")
    assert metadata_of(card) == {
        "base_model": ["google/gemma-2-2b-it"],
        "library_name": "saelens",
        "license": "mit",
        "tags": ["saelens", "sparse-autoencoder", "crosscoder", "model-diffing"],
    }
    body = ModelCard(card).text
    assert "<script" not in body
    assert "](https" not in body.replace("[SAELens](https://github.com/decoderesearch/SAELens)", "")
    assert body.count("<!-- end of crosscoder: first -->") == 1
    assert card_of(folder, card, license="mit") == card


def test_models_are_named_as_the_hub_names_them() -> None:
    names = ["gemma-2-2b", "google/gemma-2-2b", "local:chat", "unknown", "gemma-2-2b-it"]
    assert base_models(names) == ["google/gemma-2-2b", "google/gemma-2-2b-it"]


def test_a_difference_is_no_crosscoder_side_by_side(tmp_path: Path) -> None:
    sae = make_crosscoder()
    sae.cfg.metadata["combine"] = "difference"
    for source in sae.cfg.metadata["sources"]:
        source["d_in"] = 16
    card = publish_crosscoder(sae, "alice/diff", "first", dry_run=True).card
    assert f"A sparse autoencoder with {D_SAE} latents on the second source's activations minus the first's:" in card
    assert "Latents by class" not in card
