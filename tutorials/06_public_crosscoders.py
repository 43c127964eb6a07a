# %% [markdown]
# # 6. Load public crosscoders, and make dashboards
#
# Crosscoders that others have published load by one call as stock SAELens SAEs, whatever format they are in. With a
# network this loads that of Kissane et al. (2024) on Gemma-2-2B:
#
# ```python
# from sae_lens_crosscoder.hub import load_crosscoder
#
# sae = load_crosscoder("kissane-gemma-2-2b-l14")
# ```
#
# **This tutorial runs on a stand-in**, since it uses neither network nor GPU: a small L1 crosscoder on the pair of
# tutorial 1, written to `out/kissane/` in the files of Kissane et al. Everything after loading is the same.

# %%
import json
import warnings
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch
from sae_lens import LoggingConfig
from transformers.utils import logging as transformers_logging

from sae_lens_crosscoder import (
    CrosscoderRunnerConfig,
    CrosscoderTrainingRunner,
    JointModel,
    StandardTrainingCrosscoderConfig,
)
from sae_lens_crosscoder.dashboards import DashboardConfig, DashboardSubject
from sae_lens_crosscoder.demo import PairConfig, load_or_make_pair
from sae_lens_crosscoder.diffing import PairGeometry, decoder_norms
from sae_lens_crosscoder.hub import load_crosscoder
from sae_lens_crosscoder.hub.registry import known_crosscoders
from sae_lens_crosscoder.training.saved_run import SavedRun

warnings.filterwarnings("ignore", module="huggingface_hub|transformers")
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
OUT = Path("out")
if not (OUT / "first" / "cfg.json").is_file():
    raise SystemExit("Run tutorial 1 first: it makes the data in out/data.")

# %% [markdown]
# ## What is known
#
# `sae-lens-crosscoder load --known` prints this list. Nothing in it is guessed: what a checkpoint does not say and its
# authors have not published has to be given.

# %%
known = known_crosscoders()
pd.DataFrame([(k.name, k.format, k.about) for k in known], columns=["name", "format", "about"])

# %% [markdown]
# ## The stand-in
#
# An L1 crosscoder, trained for 150 steps, and then unfolded into the four tensors of Kissane et al.: their crosscoder
# takes activations *times a factor for each model*, and **the factors are not in the files**. Their notebook has them.

# %%
pair = load_or_make_pair(OUT / "pair", PairConfig())
cfg = CrosscoderRunnerConfig(
    sae=StandardTrainingCrosscoderConfig(d_in=pair.sources.d_in, d_sae=384, l1_coefficient=0.8),
    sources=list(pair.sources),
    datasets=SavedRun(OUT / "first").config().datasets,
    training_tokens=150 * 2048,
    train_batch_size_tokens=2048,
    context_size=64,
    store_batch_size_prompts=64,
    n_batches_in_buffer=512,
    n_batches_for_norm_estimate=10,
    n_eval_batches=1,
    lr=2e-3,
    feature_sampling_window=100,
    checkpoint_path=None,
    output_path=str(OUT / "l1"),
    overwrite_output=True,
    logger=LoggingConfig(log_to_wandb=False),
    verbose=False,
)
torch.manual_seed(0)
CrosscoderTrainingRunner(cfg).run()
run = SavedRun(OUT / "l1")
ours, width = run.sae, pair.config.width
scales = run.sources.activation_scales
g = torch.tensor(scales)
folder = OUT / "kissane"
folder.mkdir(exist_ok=True)
torch.save(
    {
        "W_enc": (ours.W_enc.detach().view(2, width, -1) / g[:, None, None]).contiguous(),
        "W_dec": (ours.W_dec.detach().view(-1, 2, width) * g[:, None]).contiguous(),
        "b_enc": ours.b_enc.detach().clone(),
        "b_dec": (ours.b_dec.detach().view(2, width) * g[:, None]).contiguous(),
    },
    folder / "cc_weights.pt",
)
written = {"d_in": width, "dict_size": 384, "hook_point": pair.sources[0].hook_name, "l1_coeff": 0.8}
(folder / "cfg.json").write_text(json.dumps(written))
print({path.name: path.stat().st_size for path in sorted(folder.iterdir())})

# %% [markdown]
# ## Load it
#
# The format is recognised by the files. Without the factors it is refused, and the message says what to give:

# %%
try:
    load_crosscoder(folder)
except ValueError as error:
    print(type(error).__name__, "-", error)

# %%
named = [{"label": s.label, "model_name": s.model_name, "model_class_name": s.model_class_name} for s in pair.sources]
sae = load_crosscoder(folder, scales=scales, sources=named)
wrong = load_crosscoder(folder, scales=[1.0, 1.0], sources=named)
joint = JointModel.from_pretrained(pair.sources)
tokens = pair.corpus.mixture(128, torch.Generator().manual_seed(6), held_out=True).tokens
with torch.no_grad():
    activations = joint(tokens)[:, 1:].flatten(0, 1)
    codes = {"ours": ours.encode(activations), "loaded": sae.encode(activations), "wrong": wrong.encode(activations)}
table = pd.DataFrame(
    {
        name: {
            "L0": float((f > 0).sum(-1).float().mean()),
            "largest difference of codes": float((f - codes["ours"]).abs().max()),
        }
        for name, f in codes.items()
    }
).T
table.rename(index={"wrong": "with factors of 1"}).round(4)

# %% [markdown]
# Loaded with its factors it is the same crosscoder; with factors of 1 it runs as well, and every number is wrong. That
# is why they have to be given.
#
# ## Dashboards
#
# `write_dashboards` makes sae-dashboard's pages with a column of logits for each model, and an index that finds
# latents.
# It needs the extra `dashboard`, which lives on the second dependency stack. Where that is not installed, the table
# below is what there is.

# %%
geometry = PairGeometry.from_sources(sae.W_dec, joint.sources.with_activation_scales(scales))
print(geometry.counts)
norms = decoder_norms(sae.W_dec, [width, width], scales)
latents = codes["loaded"].gt(0).float().mean(0).argsort(descending=True)[:8].tolist()
if find_spec("sae_dashboard") is None:
    print("sae-dashboard is not installed here: no pages were made (pip install 'sae-lens-crosscoder[dashboard]').")
else:
    from sae_lens_crosscoder.dashboards import write_dashboards

    subject = DashboardSubject(joint, sae, tokens, (pair.corpus.bos,))
    index = write_dashboards(subject, latents, OUT / "dashboards", DashboardConfig(n_latents_per_page=8))
    print("The dashboards are in", index)
pd.DataFrame(
    {
        "latent": latents,
        "class": [geometry.classes[j] for j in latents],
        "relative norm": [float(geometry.relative_norms[j]) for j in latents],
        "frequency": [float(codes["loaded"][:, j].gt(0).float().mean()) for j in latents],
        "fires most on": [
            pair.tokenizer.decode([int(tokens[:, 1:].flatten()[codes["loaded"][:, j].argmax()])]) for j in latents
        ],
    }
).round(3)

# %% [markdown]
# **Check.** The loaded crosscoder is ours to rounding, and wrong factors are not:

# %%
assert table.loc["loaded", "largest difference of codes"] < 1e-3
assert table.loc["wrong", "largest difference of codes"] > 0.1
assert abs(table.loc["loaded", "L0"] - table.loc["ours", "L0"]) < 0.01
assert "kissane-gemma-2-2b-l14" in {k.name for k in known}
assert sae.cfg.metadata["converted_from"]["format"] == "kissane"
print("All as the text says.")
