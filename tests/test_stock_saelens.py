"""What is saved needs this package no more: plain SAELens gives the same numbers to the last bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import batchtopk_config, run_config, standard_config, tiny_pair, token_dataset
from sae_lens import SAE
from safetensors.torch import load_file, save_file

from sae_lens_crosscoder import CrosscoderTrainingRunner

SCRIPT = """
import sys
sys.modules["sae_lens_crosscoder"] = None  # importing it raises ImportError
import torch
torch.set_num_threads(1)
from pathlib import Path
from safetensors.torch import load_file, save_file
from sae_lens import SAE

work = Path(sys.argv[1])
x = load_file(work / "x.safetensors")["x"]
for name in sys.argv[2:]:
    sae = SAE.load_from_disk(work / name / "output")
    codes = sae.encode(x)
    save_file({"codes": codes, "reconstructions": sae.decode(codes)}, work / f"{name}.safetensors")
try:
    import sae_lens_crosscoder
except ImportError:
    print("not importable")
"""

CONFIGS = {"standard": standard_config, "batchtopk": batchtopk_config}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a crosscoder of each architecture and what a process without this package makes of it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("stock")
    for name, config in CONFIGS.items():
        cfg = run_config(config(), folder / name, n_eval_batches=0)
        CrosscoderTrainingRunner(cfg, token_dataset(400), tiny_pair()).run()
    save_file({"x": torch.randn(300, 32) * 4}, folder / "x.safetensors")
    (folder / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py", str(folder), *CONFIGS], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == "not importable"
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_a_process_without_this_package_gets_the_same_codes_and_reconstructions_bit_for_bit(work: Path, name: str):
    x = load_file(work / "x.safetensors")["x"]
    sae = SAE.load_from_disk(work / name / "output")
    theirs = load_file(work / f"{name}.safetensors")
    codes = sae.encode(x)
    assert 0 < (codes > 0).sum() < codes.numel()
    assert torch.equal(theirs["codes"], codes)
    assert torch.equal(theirs["reconstructions"], sae.decode(codes))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_saved_folder_names_nothing_of_this_package_as_its_class(work: Path, name: str):
    sae = SAE.load_from_disk(work / name / "output")
    assert sae.cfg.architecture() == {"standard": "standard", "batchtopk": "jumprelu"}[name]
    assert type(sae).__module__.split(".")[0] == "sae_lens"
