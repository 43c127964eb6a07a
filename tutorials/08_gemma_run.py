# %% [markdown]
# # 8. A run on Gemma-2-2B base and chat: the configuration, and what it takes
#
# This tutorial trains nothing. It writes the configuration of a real run, and computes what it takes in memory, disk
# and arithmetic from the configuration, the shape of the models, and what this repository's benchmarks measured. Times
# are **computed, not measured**: they follow from the arithmetic and from an assumed throughput, which is stated.

# %%
import json
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from sae_lens_crosscoder import BatchTopKTrainingCrosscoderConfig, CrosscoderRunnerConfig, Source
from sae_lens_crosscoder.model_diff import DiffConfig
from sae_lens_crosscoder.training.needs import RunNeeds

warnings.filterwarnings("ignore")
OUT = Path("out")

# %% [markdown]
# ## The configuration
#
# Layer 13 of both models, half ordinary text and half chats, BatchTopK with k = 100: the setting of Minder et al.
# (2025). The models are loaded in bfloat16, the buffer is bfloat16, the dictionary float32.


# %%
def gemma_run(d_sae: int, training_tokens: int) -> CrosscoderRunnerConfig:
    hook, bfloat16 = "blocks.13.hook_resid_post", {"dtype": "bfloat16"}
    return CrosscoderRunnerConfig(
        sae=BatchTopKTrainingCrosscoderConfig(d_in=2 * 2304, d_sae=d_sae, k=100),
        sources=[
            Source("base", "google/gemma-2-2b", hook, 2304, model_from_pretrained_kwargs=bfloat16),
            Source("chat", "google/gemma-2-2b-it", hook, 2304, model_from_pretrained_kwargs=bfloat16),
        ],
        datasets=[
            {"path": "monology/pile-uncopyrighted", "label": "pile", "weight": 0.5},
            {"path": "lmsys/lmsys-chat-1m", "label": "chats", "weight": 0.5, "kind": "chat"},
        ],
        training_tokens=training_tokens,
        context_size=1024,
        n_batches_in_buffer=512,
        buffer_dtype="bfloat16",
        autocast_lm=True,
        checkpoint_path="checkpoints/gemma",
        n_checkpoints=10,
        n_kept_checkpoints=2,
        output_path="gemma-crosscoder",
        verbose=False,
    )


cfg = gemma_run(16_384, 100_000_000)
n_steps = cfg.training_tokens // cfg.train_batch_size_tokens
print(f"{n_steps:,} steps of {cfg.train_batch_size_tokens:,} tokens, learning rate {cfg.lr}")
OUT.mkdir(exist_ok=True)
(OUT / "gemma.json").write_text(json.dumps(cfg.to_dict(), indent=2, default=str))
print("On a machine with a GPU: sae-lens-crosscoder train out/gemma.json --device cuda --sae.device cuda --resume auto")

# %% [markdown]
# ## Memory and disk
#
# `RunNeeds` is what the runner itself computes before it loads a model, and refuses a run by. The models come on top:
# Gemma-2-2B has 26 blocks of width 2,304 (8 query and 4 key heads of 256, three MLP matrices of 9,216) and an embedding
# of 256,000 tokens.

# %%
WIDTH, MLP, BLOCKS, VOCABULARY = 2304, 9216, 26, 256_000
attention = WIDTH * 256 * (8 + 4 + 4 + 8)
block_weights = attention + 3 * WIDTH * MLP
model_weights = BLOCKS * block_weights + VOCABULARY * WIDTH
print(f"one model: {model_weights / 1e9:.2f} billion weights, {2 * model_weights / 1e9:.1f} GB in bfloat16")

GB = 1e9
rows = {}
for d_sae in (16_384, 32_768, 73_728):
    needs = RunNeeds.of(gemma_run(d_sae, 100_000_000))
    rows[f"{d_sae:,} latents"] = {
        "models": 2 * 2 * model_weights / GB,
        "weights, gradients, Adam": needs.training / GB,
        "buffer": needs.buffer / GB,
        "checkpoints on disk": needs.checkpoints * needs.checkpoint / GB,
        "crosscoder on disk": needs.weights / GB,
    }
needed = pd.DataFrame(rows).T
memory = needed[["models", "weights, gradients, Adam", "buffer"]]
needed.insert(0, "memory, GB", memory.sum(axis=1))
needed.round(1)

# %% [markdown]
# The working memory of a forward pass (four sequences of 1,024 tokens) comes on top, about a gigabyte, since the models
# stop at the layer and never compute logits while training.

# %%
figure, axes = plt.subplots(figsize=(7, 2.6))
memory.plot.barh(stacked=True, ax=axes, color=["#4c72b0", "#c44e52", "#55a868"])
axes.axvline(24, color="#444444", ls=":", lw=1)
axes.axvline(80, color="#444444", ls=":", lw=1)
axes.set(xlabel="GB of GPU memory (dotted: 24 and 80)", xlim=(0, 85))
axes.invert_yaxis()
axes.legend(frameon=False, fontsize=8)
axes.spines[["top", "right"]].set_visible(False)
figure.tight_layout()

# %% [markdown]
# ## Time
#
# A token costs two forward passes of 14 blocks (2 operations a weight) and one training step of the dictionary: encode,
# decode and three gradients, 2·d_in·d_sae each if all of it is dense (only encoding has to read all latents). The
# benchmark of the store measures how much longer harvesting takes than these bare forward passes; its newest result
# is read here.

# %%
newest = sorted(Path("../benchmarks/results").glob("harvest-*.json"))[-1]
measured = {row["name"]: row["over_floor"] for row in json.loads(newest.read_text())["rows"] if "over_floor" in row}
over_floor = measured["paired store, bfloat16 buffer"]
print(f"{newest.name}: harvesting takes {over_floor:.2f} times the bare forward passes")

ASSUMED = 300e12  # operations a second, sustained in bfloat16: an assumption, a good third of an H100's peak
costs = {}
for d_sae in (16_384, 32_768, 73_728):
    harvest = over_floor * 2 * 2 * 14 * block_weights
    step = 10 * cfg.sae.d_in * d_sae
    for tokens in (100_000_000, 400_000_000):
        costs[f"{d_sae:,} latents, {tokens // 10**6} M tokens"] = {
            "harvest, GFLOP a token": harvest / 1e9,
            "step, GFLOP a token": step / 1e9,
            "hours at 300 TFLOP/s": tokens * (harvest + step) / ASSUMED / 3600,
        }
times = pd.DataFrame(costs).T
times.round(2)

# %% [markdown]
# Running the models costs more than the dictionary at all three sizes, so that activations written to disk once pay off
# when several dictionaries are trained on them. These hours are a lower bound: reading data, selection and memory
# traffic come on top. For comparison, the authors of a published BatchTopK crosscoder of 73,728 latents estimate about
# five hours on an A100 for 100 M tokens (OpenInterpretability).
#
# The diff afterwards reads less text but more often:

# %%
diff = DiffConfig()
whole = 2 * (BLOCKS * block_weights + VOCABULARY * WIDTH)
passes = {
    "reading latents": diff.budget_tokens * 2 * 2 * 14 * block_weights,
    "KL attribution, about 12 passes": diff.kl_budget_tokens * 12 * whole,
    "causal tests, about 200 passes": diff.causal_budget_tokens * 200 * whole,
}
minutes = pd.Series({name: work / ASSUMED / 60 for name, work in passes.items()}, name="minutes at 300 TFLOP/s")
minutes.round(2).to_frame()

# %% [markdown]
# **Check.** A dictionary of 16,384 latents trains on a card of 24 GB, one of 73,728 on one of 80 GB; 400 M tokens take
# less than a day even with the large one, at the assumed throughput:

# %%
assert abs(model_weights / 1e9 - 2.61) < 0.01
assert memory.sum(axis=1).iloc[0] + 1 < 24 < memory.sum(axis=1).iloc[2] + 1 < 80
assert times["hours at 300 TFLOP/s"].max() < 24
assert minutes.sum() < 60
assert (cfg.train_batch_size_tokens, cfg.lr) == (2048, 1e-4)
print("All as the text says.")
