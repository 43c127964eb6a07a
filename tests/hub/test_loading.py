"""Which checkpoint is meant, which format it has, and our own folders read back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_checkpoints import BUILDERS, DictionaryLearning, sources_of
from foreign_checkpoints import kissane as kissane_checkpoint
from foreign_checkpoints import through_time as through_time_checkpoint
from helpers import crosscoder
from sae_lens import SAE
from safetensors.torch import load_file, save_file

from sae_lens_crosscoder import Source, Sources
from sae_lens_crosscoder.errors import CheckpointError, ConfigError, DataError, NotFoundError, SaveError, SourceError
from sae_lens_crosscoder.hub import FORMATS, convert, load_crosscoder
from sae_lens_crosscoder.hub.checked_files import CheckpointFolder
from sae_lens_crosscoder.hub.formats import detected
from sae_lens_crosscoder.manifest import MANIFEST_FILENAME, write_manifest

pytestmark = pytest.mark.filterwarnings("default:.*does not say whether activation scales:UserWarning")

SOURCES = Sources(tuple(Source(label, label, "blocks.0.hook_resid_pre", 16) for label in ("base", "chat")))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder as a run of this package saves it."""
    sae = crosscoder()
    sae.fold_activation_norm_scaling_factor([0.5, 2.0])
    for name, value in SOURCES.to_metadata().items():
        sae.cfg.metadata[name] = value
    sae.save_inference_model(tmp_path / "own")
    return tmp_path / "own"


# ------------------------------------------------------------------------------------- which format


@pytest.mark.parametrize("name", BUILDERS)
def test_a_folder_looks_like_its_own_format_and_no_other(name: str, tmp_path: Path):
    made = BUILDERS[name](tmp_path)
    assert [found.name for found in detected(CheckpointFolder(made.folder))] == [name]
    # Files that are no part of the format change nothing.
    for extra in ("README.md", "io.pt", "meta.json", "optimizer_state.pt"):
        (made.folder / extra).write_text("{}")
    assert [found.name for found in detected(CheckpointFolder(made.folder))] == [name]


@pytest.mark.parametrize("name", BUILDERS)
def test_a_damaged_configuration_is_named_and_no_format_guessed_from_it(name: str, tmp_path: Path):
    made = BUILDERS[name](tmp_path)
    config = next(path for path in made.folder.iterdir() if path.suffix in (".json", ".yaml"))
    config.write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot be read|no known format"):
        load_crosscoder(made.folder, **made.options)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_crosscoder(made.folder, format=name, **made.options)


def test_an_unknown_folder_is_refused_with_what_it_holds_and_what_is_known(tmp_path: Path):
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"no known format\. It holds weights\.bin") as caught:
        load_crosscoder(tmp_path)
    assert all(name in str(caught.value) for name in FORMATS)


def test_a_folder_of_two_formats_is_refused_and_read_when_one_is_named(tmp_path: Path):
    made = kissane_checkpoint(tmp_path)
    through_time_checkpoint(tmp_path)
    shutil.copy(tmp_path / "cc_weights.pt", tmp_path / "kept.pt")
    with pytest.raises(CheckpointError, match="looks like 'kissane' and 'crosscoder-through-time'"):
        load_crosscoder(tmp_path)
    made = kissane_checkpoint(tmp_path)
    made.same_numbers(load_crosscoder(tmp_path, format="kissane", **made.options))


def test_a_format_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no checkpoint format 'kisane'.*kissane"):
        load_crosscoder(kissane_checkpoint(tmp_path).folder, format="kisane")


def test_a_folder_read_as_another_format_is_refused(tmp_path: Path):
    for name, build in BUILDERS.items():
        made = build(tmp_path / name)
        for other in FORMATS:
            if other != name:
                with pytest.raises((CheckpointError, ConfigError)):
                    load_crosscoder(made.folder, format=other)


# ------------------------------------------------------------------------------- which checkpoint


def test_the_only_checkpoint_below_a_folder_is_found_and_several_need_an_id(tmp_path: Path):
    made = DictionaryLearning().write(tmp_path / "a" / "deep" / "one")
    made.same_numbers(load_crosscoder(tmp_path))
    DictionaryLearning().write(tmp_path / "b")
    with pytest.raises(ConfigError, match=r"2 checkpoints\. Give one as the id: 'a/deep/one', 'b'"):
        load_crosscoder(tmp_path)
    made.same_numbers(load_crosscoder(tmp_path, "a/deep/one"))


def test_what_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(NotFoundError, match="no folder or file"):
        load_crosscoder(tmp_path / "absent")
    with pytest.raises(NotFoundError, match="absent"):
        load_crosscoder(tmp_path, "absent")
    with pytest.raises(CheckpointError, match="leads out"):
        load_crosscoder(tmp_path, "../x")


def test_a_weights_file_may_be_named_itself(tmp_path: Path):
    made = kissane_checkpoint(tmp_path, numbered=True)
    made.same_numbers(load_crosscoder(tmp_path / "version_0" / "0.pt", **made.options))


def test_circular_links_below_a_folder_are_not_followed(tmp_path: Path):
    made = DictionaryLearning().write(tmp_path / "one")
    (tmp_path / "loop").symlink_to(tmp_path)
    made.same_numbers(load_crosscoder(tmp_path))


# ----------------------------------------------------------------------------------- our own folders


def test_our_own_folder_is_read_as_stock_saelens_reads_it(own: Path):
    sae, stock, x = load_crosscoder(own), SAE.load_from_disk(own), torch.randn(50, 32)
    assert torch.equal(sae.encode(x), stock.encode(x))
    assert torch.equal(sae(x), stock(x))
    assert type(sae) is type(stock)
    assert sources_of(sae) == SOURCES
    assert sae.cfg.metadata.converted_from is None


def test_a_saelens_sae_without_sources_takes_the_callers(own: Path):
    config = json.loads((own / "cfg.json").read_text())
    del config["metadata"]["sources"]
    (own / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match="no 'sources'"):
        load_crosscoder(own)
    given = SOURCES.to_metadata()["sources"]
    assert sources_of(load_crosscoder(own, sources=given)) == SOURCES
    with pytest.raises(SourceError, match="16 wide together, but the SAE takes 32"):
        load_crosscoder(own, sources=given[:1])


def test_what_is_said_of_our_own_folders_sources_leaves_their_activation_scales(own: Path):
    config = json.loads((own / "cfg.json").read_text())
    for source, scale in zip(config["metadata"]["sources"], (0.5, 2.0), strict=True):
        source["activation_scale"] = scale
    config["metadata"]["token_alignment"] = "character_offsets"
    (own / "cfg.json").write_text(json.dumps(config))
    for said in (
        [{"model_name": "a/base"}, {"label": "it"}],
        [Source("base", "a/base", SOURCES[0].hook_name, 16), Source("it", "chat", SOURCES[1].hook_name, 16)],
    ):
        sources = sources_of(load_crosscoder(own, sources=said))
        assert [source.model_name for source in sources] == ["a/base", "chat"]
        assert sources.labels == ["base", "it"]
        assert sources.activation_scales == [0.5, 2.0]
        assert sources.token_alignment == "character_offsets"
    with pytest.raises(ConfigError, match="activation_scale comes with the checkpoint"):
        load_crosscoder(own, sources=[{"activation_scale": 1.0}, {}])


def test_a_revision_of_a_folder_is_refused(own: Path):
    with pytest.raises(ConfigError, match="has no revision 'v2'"):
        load_crosscoder(own, revision="v2")


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"normalize_activations": "expected_average_only_in"}, "expects scaled activations"),
        ({"architecture": "unheard_of"}, "cannot be loaded"),
        ({"d_sae": 31}, "cannot be loaded"),
        ({"d_in": "wide"}, "cannot be loaded"),
        ({"metadata": 3}, "cannot be loaded"),
        ({"dtype": "float31"}, "cannot be loaded"),
    ],
)
def test_our_own_folder_with_a_changed_configuration_is_refused(own: Path, values: dict[str, Any], message: str):
    change_config(own, **values)
    with pytest.raises(CheckpointError, match=message):
        load_crosscoder(own)


def test_a_training_checkpoint_is_refused(own: Path):
    (own / "trainer_state.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="training checkpoint"):
        load_crosscoder(own)


def test_our_own_weights_with_nan_are_refused(own: Path):
    tensors = load_file(own / "sae_weights.safetensors")
    tensors["b_dec"][3] = torch.nan
    save_file(tensors, own / "sae_weights.safetensors")
    with pytest.raises(CheckpointError, match="b_dec holds NaN"):
        load_crosscoder(own)


def test_a_manifest_finds_one_flipped_bit_anywhere_in_the_weights(own: Path):
    weights = own / "sae_weights.safetensors"
    write_manifest(own)
    load_crosscoder(own)
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1  # a mantissa: still a finite number
    weights.write_bytes(content)
    SAE.load_from_disk(own)
    with pytest.raises(DataError, match=r"sae_weights\.safetensors has other contents than were written"):
        load_crosscoder(own)


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "[]", '{"files": {"cfg.json": 3}, "manifest_version": 1}'])
def test_a_manifest_that_is_none_is_refused(own: Path, content: str):
    (own / MANIFEST_FILENAME).write_text(content)
    with pytest.raises(DataError, match="manifest"):
        load_crosscoder(own)


# ------------------------------------------------------------------------------------------ convert


def test_convert_leaves_nothing_half_written_where_it_fails(tmp_path: Path):
    made = kissane_checkpoint(tmp_path / "theirs")
    with pytest.raises(ConfigError, match="scales"):
        convert(made.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="failed"):
        convert(made.folder, tmp_path / "file" / "out", **made.options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "theirs"]


def test_convert_does_not_put_a_crosscoder_among_the_files_of_another(tmp_path: Path):
    made = kissane_checkpoint(tmp_path / "theirs")
    out = convert(made.folder, tmp_path / "out", **made.options)
    before = (out / "cfg.json").read_bytes()
    convert(made.folder, out, **made.options)
    (out / "metrics.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds metrics\.json of another crosscoder"):
        convert(made.folder, out, scales=[1.0, 1.0])
    assert (out / "cfg.json").read_bytes() == before


def test_a_converted_folder_names_no_path_of_this_machine(tmp_path: Path):
    made = kissane_checkpoint(tmp_path / "theirs")
    out = convert(made.folder, tmp_path / "out", **made.options)
    assert sorted(path.name for path in out.iterdir()) == ["cfg.json", "manifest.json", "sae_weights.safetensors"]
    assert str(tmp_path) not in (out / "cfg.json").read_text() + (out / "manifest.json").read_text()
