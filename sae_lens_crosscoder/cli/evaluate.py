"""`eval`: measure a crosscoder on its models."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from sae_lens_crosscoder.cli.parser import parse_fields
from sae_lens_crosscoder.errors import ConfigError

if TYPE_CHECKING:
    from sae_lens_crosscoder.cli.parser import Commands

_DESCRIPTION = """Load a crosscoder and its models, measure sparsity, explained variance, and CE and KL of every
model with the reconstruction spliced in, and write evaluation.json. Fields of the run's configuration,
such as --n_eval_batches or --datasets, can be changed by flags."""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("eval", help="measure a crosscoder on its models", description=_DESCRIPTION)
    parser.add_crosscoder()
    parser.add_argument("--out", type=Path, help="JSON file to write; default PATH/evaluation.json")
    parser.runs(_eval, takes_fields=True)


def _eval(options: Namespace) -> None:
    from sae_lens_crosscoder.activations import PairedActivationsStore
    from sae_lens_crosscoder.evals import CrosscoderEvaluator, joined_heads
    from sae_lens_crosscoder.files import check_writable, write_json
    from sae_lens_crosscoder.joint_model import JointModel
    from sae_lens_crosscoder.training.devices import check_device
    from sae_lens_crosscoder.training.saved_run import SavedRun

    check_device(options.device)
    out = options.out or options.path / "evaluation.json"
    if out.is_dir():
        raise ConfigError(f"{out} is a folder. Name the file that is to be written, such as {out / 'evaluation.json'}.")
    check_writable(out.parent)
    overrides = parse_fields(options.fields)
    overrides |= {"device": options.device, "llm_device": None, "act_store_device": None}
    run = SavedRun(options.path, options.device)
    cfg = run.config(overrides)
    model = JointModel.from_pretrained(run.sources, options.device)
    stores = [PairedActivationsStore.from_config(model, cfg, shard=shard) for shard in range(cfg.n_data_shards)]
    store = stores[0]
    store.eval_sequences = joined_heads([each.eval_sequences for each in stores])
    evaluator = CrosscoderEvaluator.from_store(store, cfg.eval_batch_size_prompts)
    metrics = evaluator.evaluate(run.sae, progress=True)
    write_json(out, metrics)
    if "token_alignment" in metrics:
        kept = metrics["token_alignment"]["kept_share"]
        print(f"measured at {', '.join(f'{share:.1%} of the tokens of {label}' for label, share in kept.items())}")
    print(f"L0 {metrics['l0']:.1f}, {metrics['dead_latents']} of {metrics['d_sae']} latents silent on these tokens")
    for label, source in metrics["sources"].items():
        print(
            f"{label}: explained variance {source['explained_variance']:.3f}, "
            f"CE score {source['ce_loss_score']:.3f}, KL score {source['kl_div_score']:.3f}"
        )
    print(f"All metrics are in {out}.")
