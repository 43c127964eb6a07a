# %% [markdown]
# # 9. Scale out with torchrun
#
# A dictionary that is too large or too slow for one GPU is trained by several processes, on one machine or on many.
# `torchrun` starts them, and the command is that of one process:
#
# ```sh
# torchrun --nproc-per-node 8 -m sae_lens_crosscoder train run.yaml --n_data_shards 8 --dictionary_layout sharded
# ```
#
# Here two processes of this machine's CPU do it at toy size. At the end a table shows that the crosscoder is the same
# whoever trained it: one process, two in either layout, or one that went on where two were stopped. It needs the pair
# and the text of tutorial 1.

# %%
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml
from safetensors.torch import load_file

from sae_lens_crosscoder.training.saved_run import SavedRun

OUT = Path("out/several")
if not Path("out/data/planted").is_dir():
    raise SystemExit("Run tutorial 1 first: it makes the models in out/pair and the text in out/data.")
shutil.rmtree(OUT, ignore_errors=True)
OUT.mkdir(parents=True)

# %% [markdown]
# ## One configuration
#
# `n_data_shards` divides the documents: each part has a stream, a buffer and random numbers of its own and gives an
# equal part of every batch. So the batches do not depend on who reads them. There can be as many processes as there are
# parts, or half as many, and so on; choose it as large as the most that you may want.
#
# The crosscoder is in double precision, so that a difference in the order of summation stays visible as one.

# %%
model = {"hook_name": "transformer.h.1", "d_in": 128, "model_class_name": "AutoModelForCausalLM"}
config = {
    "sae": {"architecture": "batchtopk_crosscoder", "d_in": 256, "d_sae": 128, "k": 12, "dtype": "float64"},
    "sources": [{"label": label, "model_name": f"out/pair/{label}", **model} for label in ("base", "finetuned")],
    "datasets": [
        {"path": "out/data/plain", "label": "plain", "weight": 0.2},
        {"path": "out/data/planted", "label": "planted", "weight": 0.8},
    ],
    "n_data_shards": 2,
    "dtype": "float64",
    "training_tokens": 80 * 512,
    "train_batch_size_tokens": 512,
    "context_size": 64,
    "store_batch_size_prompts": 16,
    "n_batches_in_buffer": 64,
    "n_batches_for_norm_estimate": 8,
    "n_eval_batches": 4,
    "lr": 3e-3,
    "lr_warm_up_steps": 10,
    "n_checkpoints": 1,
    "logger": {"log_to_wandb": False},
    "verbose": False,
}
(OUT / "run.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

# %% [markdown]
# ## One process, and two
#
# *Replicated*: each process has the whole dictionary and computes on its part of the batch; gradients are averaged.
# *Sharded*: each has half of the latents and computes on the whole batch; partial reconstructions are summed. BatchTopK
# keeps the largest scores of the whole batch and of all latents in both.


# %%
def train(name: str, n_processes: int, *flags: str) -> None:
    """Train by the command line, in `out/several/NAME`."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
    folders = ["--output_path", str(OUT / name), "--checkpoint_path", str(OUT / name / "checkpoints")]
    command = [
        *(torchrun if n_processes > 1 else []),
        "-m",
        "sae_lens_crosscoder",
        "train",
        str(OUT / "run.yaml"),
        *folders,
        *flags,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout.strip())


train("one", 1)
train("replicated", 2, "--dictionary_layout", "replicated")
train("sharded", 2, "--dictionary_layout", "sharded")

# %% [markdown]
# ## Going on with other processes
#
# A checkpoint holds whole weights and the state of each part of the data, whatever the layout. So what two processes
# began, one can end: here from the checkpoint in the middle of the sharded run. (After a failure `--resume auto` finds
# the newest whole checkpoint by itself, and `torchrun --max-restarts 3` starts the processes anew.)

# %%
(checkpoint,) = (path.parent for path in (OUT / "sharded" / "checkpoints").rglob("sae_weights.safetensors"))
print("from the checkpoint at", checkpoint.name, "tokens")
train("resumed", 1, "--resume", str(checkpoint))

# %% [markdown]
# ## The same crosscoder
#
# The last column is the largest difference of any weight from that of the run of one process.

# %%
reference = load_file(OUT / "one" / "sae_weights.safetensors")
rows = {}
for name, how in (
    ("one", "1 process"),
    ("replicated", "2 processes, replicated"),
    ("sharded", "2 processes, sharded"),
    ("resumed", "2 processes to the middle, then 1"),
):
    metrics = SavedRun(OUT / name).metrics()
    weights = load_file(OUT / name / "sae_weights.safetensors")
    rows[how] = {
        "L0": metrics["l0"],
        **{f"explained variance, {label}": part["explained_variance"] for label, part in metrics["sources"].items()},
        "largest difference": max(float((weights[key] - reference[key]).abs().max()) for key in reference),
    }
table = pd.DataFrame(rows).T
table.round(4).assign(**{"largest difference": table["largest difference"].map("{:.0e}".format)})

# %% [markdown]
# Larger by far than these differences is that between two numbers of *parts*: `n_data_shards: 1` reads other batches
# than `n_data_shards: 2`. Which layout to take, what goes over the network and a plan for a million latents stand in
# the documentation, under *Several GPUs and machines*.
#
# **Check.**

# %%
assert len(rows) == 4
assert table["largest difference"].max() < 1e-9, "the same crosscoder, but for the order of summation"
assert table["L0"].nunique() == 1
assert table["explained variance, base"].min() > 0.3
spread = table[["explained variance, base", "explained variance, finetuned"]]
assert (spread.max() - spread.min()).max() < 1e-6
print("All as the text says.")
