"""The output and the losses of a training step on active pairs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import TrainingSAE
from torch import Tensor

from sae_lens_crosscoder._saelens import TrainStepInput, TrainStepOutput
from sae_lens_crosscoder.training.crosscoder import T_TRAINING_CROSSCODER_CONFIG, TrainingCrosscoder
from sae_lens_crosscoder.training.sparse.autograd import decode_pairs, encode_pairs
from sae_lens_crosscoder.training.sparse.chunk_encoder import ChunkEncoder
from sae_lens_crosscoder.training.sparse.encoder import PairEncoder, ScoredPairs
from sae_lens_crosscoder.training.sparse.pairs import ActivePairs, blocks_of
from sae_lens_crosscoder.training.sparse.selection import AnyEncoder

MAX_ACTIVE_SHARE = 0.05
"""Share of all codes up to which the sparse step is the faster one."""

_DEVICES = ("cpu", "cuda")
CHUNKED_DEVICES = ("cuda",)  # on which waiting for a number costs more than scoring all pairs in one way
_DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class SparseCodes:
    """The codes of a batch, with gradient."""

    pairs: ActivePairs
    """Tokens and latents that are active."""

    acts: Float[Tensor, " n_pairs"]
    """Their codes."""

    @classmethod
    def of(cls, sae: TrainingCrosscoder[T_TRAINING_CROSSCODER_CONFIG], x: Tensor, found: ScoredPairs) -> SparseCodes:
        """The codes of pairs that were found in the encoder's inputs x."""
        pairs = ActivePairs(found.flat, len(x), len(sae.W_dec))
        # A code is positive, or 0 where fewer are positive than stay: ReLU keeps the gradient from these.
        hidden_pre = encode_pairs(pairs, found.acts, x, sae.W_enc, sae.b_enc, sae.gradient_memory)
        return cls(pairs, torch.relu(hidden_pre))


def encoder_of(
    sae: TrainingCrosscoder[T_TRAINING_CROSSCODER_CONFIG],
    x: Float[Tensor, "batch d_in"],
    norms: Float[Tensor, " d_sae"],
    b_enc: Float[Tensor, " d_sae"] | None = None,
) -> AnyEncoder:
    """What scores a batch on its device, by decoder norms c, in the precision that is asked for.

    Other encoder biases than the crosscoder's score by how far pre-activations are above another number than 0.

    Under autocast in bfloat16 the encoder's product is one of rounded inputs, as with `encoder_precision="bfloat16"`.
    Decoding and the gradients on pairs stay in the weights' dtype: they are bound by memory, and autocast would round
    weights that it has to read anyway.
    """
    is_rounded = torch.is_autocast_enabled(x.device.type) and x.dtype == torch.float32
    kind = ChunkEncoder if x.device.type in CHUNKED_DEVICES else PairEncoder
    bias = sae.b_enc if b_enc is None else b_enc
    return kind(x, sae.W_enc, bias, norms, "bfloat16" if is_rounded else sae.cfg.encoder_precision)


def dense_reason(sae: TrainingSAE[Any], sae_in: Tensor, active_share: float = 0.0) -> str | None:
    """Why a step has to hold all codes; None if it can be made on the active pairs alone.

    Args:
        sae: The crosscoder.
        sae_in: The batch.
        active_share: Share of all codes that are active, if it is known beforehand.
    """
    if torch.compiler.is_compiling():
        return "it is compiled, and the number of active pairs is not known beforehand"
    if sae.W_dec.device.type not in _DEVICES:
        return f"there are no products on active pairs for {sae.W_dec.device.type}"
    if sae.W_dec.dtype not in _DTYPES:
        return f"pairs are found and scored in float32 or float64, not in {sae.W_dec.dtype}"
    device = sae.W_dec.device.type
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) != torch.bfloat16:
        return f"codes are rounded to bfloat16, not to autocast's {torch.get_autocast_dtype(device)}"
    if not sae.training:
        return "it is not training: codes are those of inference, which a threshold may select"
    if sae_in.ndim != 2:
        return "activations are not one row a token"
    if any(hook.fwd_hooks or hook.bwd_hooks for hook in sae.hook_dict.values()):
        return "a hook reads the codes of all latents"
    if active_share > MAX_ACTIVE_SHARE:
        return f"{active_share:.1%} of the codes are active, more than {MAX_ACTIVE_SHARE:.0%}"
    return None


def reconstructions(
    sae: TrainingCrosscoder[T_TRAINING_CROSSCODER_CONFIG], codes: SparseCodes, widths: Sequence[int]
) -> Iterator[Float[Tensor, "batch d_in"]]:
    """The reconstruction from the first latents of every width in turn; widths rise to all latents."""
    pairs, acts, n_tokens = codes.pairs, codes.acts, codes.pairs.n_rows
    if len(widths) > 1:
        # A token has one row for the latents between two widths, so that each pair is decoded once.
        block = blocks_of(pairs.latents, widths)
        flat, order = (pairs.flat + block * (n_tokens * pairs.n_latents)).sort()
        pairs, acts = ActivePairs(flat, n_tokens * len(widths), pairs.n_latents), acts[order]
    parts = sae.division.sum_of_latents(decode_pairs(pairs, acts, sae.W_dec, sae.gradient_memory)).split(n_tokens)
    return itertools.accumulate(parts, initial=sae.b_dec)


def sparse_output(
    sae: TrainingCrosscoder[T_TRAINING_CROSSCODER_CONFIG],
    step_input: TrainStepInput,
    codes: SparseCodes,
    aux_losses: Callable[[Tensor], dict[str, Tensor]],
    prefix_widths: Sequence[int] = (),
) -> TrainStepOutput:
    """What SAELens's `training_forward_pass` gives, with codes as a sparse tensor without gradient.

    Args:
        sae: The crosscoder.
        step_input: The batch.
        codes: Its codes.
        aux_losses: The architecture's own losses, from the reconstruction.
        prefix_widths: Numbers of first latents whose reconstructions are losses too.
    """
    ends = [sae.shard.position(width) for width in [*prefix_widths, sae.cfg.d_sae]]
    _, *inner, sae_out = reconstructions(sae, codes, ends)

    def error(reconstruction: Tensor) -> Tensor:
        return sae.mse_loss_fn(reconstruction, step_input.sae_in).sum(dim=-1).mean()

    losses = {"mse_loss": error(sae_out), **aux_losses(sae_out)}
    for width, reconstruction in zip(prefix_widths, inner, strict=True):
        losses[f"inner_mse_loss_{width}"] = error(reconstruction)
    feature_acts = codes.pairs.codes(codes.acts.detach())
    return TrainStepOutput(
        sae_in=step_input.sae_in,
        sae_out=sae_out,
        feature_acts=feature_acts,
        hidden_pre=feature_acts,
        loss=torch.stack(list(losses.values())).sum(),
        losses=losses,
    )
