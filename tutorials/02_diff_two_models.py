# %% [markdown]
# # 2. Diff two models and read the report
#
# `diff_models` asks what fine-tuning changed: it reads every latent on some text, measures where the two models'
# predictions differ, says which latents carry that, and tests it by patching. On the command line this is
# `sae-lens-crosscoder diff out/first`. It needs the crosscoder of tutorial 1.

# %%
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from transformers.utils import logging as transformers_logging

from sae_lens_crosscoder.diffing.diff_report import LatentTable
from sae_lens_crosscoder.model_diff import DiffConfig, diff_models, subject_of_run
from sae_lens_crosscoder.training.saved_run import SavedRun

warnings.filterwarnings("ignore", module="huggingface_hub|transformers")
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
OUT = Path("out")
if not (OUT / "first" / "cfg.json").is_file():
    raise SystemExit("Run tutorial 1 first: it trains the crosscoder in out/first.")

# %% [markdown]
# The run remembers its models, its data sets and its tokenizer, so its folder is all that has to be given. The three
# budgets say how many tokens are read for latents, for the KL and for causal tests; each token of a causal test is read
# hundreds of times.

# %%
config = DiffConfig(
    budget_tokens=131_072, kl_budget_tokens=16_384, causal_budget_tokens=4096, n_sequences_at_once=32, n_equivalence=8
)
subject = subject_of_run(SavedRun(OUT / "first"), config.budget_tokens)
found = diff_models(subject, OUT / "diff", config)
for paragraph in found.report.overview.paragraphs:
    print("-", paragraph)

# %% [markdown]
# ## The page
#
# `out/diff/report.html` opens with no network and no server. Its first view is the overview; the table of latents takes
# filters such as `frequency>0.01 nu_error<0.5`, and a latent's own view shows its contexts, its numbers and the tokens
# that it promotes in each model. The KL view walks through the texts on which the models disagree most.

# %%
print({path.name: f"{path.stat().st_size / 1e6:.1f} MB" for path in sorted((OUT / "diff").iterdir())})

# %% [markdown]
# ## The same as a table
#
# `latents.parquet` holds one row a latent. *KL attribution* is how much of KL(finetuned ‖ base) a latent carries, in
# nats a token, by the gradient along the path from the base model's activations to the fine-tuned model's. It knows
# nothing of triggers and payloads. `kl_attribution_exact` removes the latent and measures, for the first ones.

# %%
latents = LatentTable.load(OUT / "diff").to_pandas()
latents = latents.rename(columns={"dataset_0_mean_plain": "mean on plain", "dataset_1_mean_planted": "mean on planted"})
columns = ["latent", "class", "relative_norm", "cosine", "mean on plain", "mean on planted", "kl_attribution"]
first = latents.sort_values("kl_attribution", ascending=False).head(10)
first[[*columns, "kl_attribution_exact"]].round(4)

# %% [markdown]
# Most of the first latents fire on planted documents much more than on plain ones. Nearly all have shared decoder
# norms, but a cosine near 0: where they fire, the two models mean different directions. Norms alone would not find
# them.
#
# ## Does it carry the difference? Patch it in
#
# The base model runs to the hook, the latents' contributions to the difference are added, and the fine-tuned model goes
# on. 0 closes nothing of the KL gap between the models, 1 all of it.

# %%
effects = {name: effect["all"].gap_closed for name, effect in found.experiments.forward.items()}
shown = {name: effects[name] for name in effects if name not in ("nothing", "error")}
figure, axes = plt.subplots(figsize=(7, 2.6))
axes.barh(list(shown)[::-1], list(shown.values())[::-1], color="#4c72b0")
axes.set(xlabel="share of the KL gap closed", xlim=(min(0, *shown.values()) - 0.02, 1.02))
axes.spines[["top", "right"]].set_visible(False)
figure.tight_layout()
pd.Series(shown, name="gap closed").round(3).to_frame()

# %% [markdown]
# **Check.** Ten latents of 384 close a large part of the gap, ten random active ones close nothing, and the first
# latents are those of the planted text:

# %%
assert effects["full difference"] > 0.99
assert effects["first 10 by KL attribution"] > 0.3
assert abs(effects["10 random active ones"]) < 0.1
assert effects["reconstruction"] > effects["first 10 by KL attribution"]
assert (first["mean on planted"] > 2 * first["mean on plain"]).sum() >= 6
assert first["cosine"].median() < 0.3 < 0.6 < latents["cosine"].median()
assert found.experiments.attribution.rank_correlation > 0.4
print("All as the text says.")
