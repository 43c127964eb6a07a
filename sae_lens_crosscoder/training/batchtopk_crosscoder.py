"""The BatchTopK crosscoder: the k * batch largest codes of a batch stay, by code times summed decoder norm."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from sae_lens import JumpReLUSAEConfig, SAEConfig
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder._saelens import TrainStepInput, TrainStepOutput
from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.training.auxk_crosscoder import AuxKTrainingCrosscoder, AuxKTrainingCrosscoderConfig
from sae_lens_crosscoder.training.sparse.encoder import ScoredPairs
from sae_lens_crosscoder.training.sparse.pairs import blocks_of
from sae_lens_crosscoder.training.sparse.selection import AnyEncoder, LargestOfBatch

_THRESHOLD_STATE = ("topk_threshold", "topk_threshold_weight")


@dataclass(kw_only=True)
class BatchTopKTrainingCrosscoderConfig(AuxKTrainingCrosscoderConfig):
    """Configuration of `BatchTopKTrainingCrosscoder`.

    Raises:
        ConfigError: A k that is not positive or larger than `d_sae`, or a `k_start` without the steps to anneal it.
    """

    schedule_fields: ClassVar[tuple[str, ...]] = ("k_start", "k_annealing_steps")

    k: float = 100
    """Active latents a token, on average over a batch."""

    k_start: float | None = None
    """Active latents a token at the first step, annealed linearly to `k`; None is `k` from the start."""

    k_annealing_steps: int = 0
    """Steps until `k` is reached."""

    k_shared: float | None = None
    """How many of the `k` are designated shared latents, selected among themselves; None lets all compete."""

    topk_threshold_lr: float = 0.01
    """Rate of the moving average of the smallest kept score, which becomes the inference threshold."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, k in (("k", self.k), ("k_start", self.k if self.k_start is None else self.k_start)):
            if not 0 < k <= self.d_sae:
                raise ConfigError(f"{name}={k} must be positive and at most the number of latents, d_sae={self.d_sae}.")
        if self.k_start is not None and self.k_start != self.k and self.k_annealing_steps < 1:
            raise ConfigError(
                f"k_start={self.k_start} differs from k={self.k}, but k_annealing_steps={self.k_annealing_steps}: "
                "k would stay at k_start for ever. Say over how many steps it is annealed."
            )
        self._check_k_shared()
        if not 0 < self.topk_threshold_lr <= 1:
            raise ConfigError(f"topk_threshold_lr={self.topk_threshold_lr} must lie in (0, 1].")

    def _check_k_shared(self) -> None:
        if self.k_shared is None:
            return
        ks = (self.k, self.k if self.k_start is None else self.k_start)
        n_others = self.d_sae - self.n_shared_latents
        if not (0 < self.k_shared <= self.n_shared_latents and min(ks) > self.k_shared >= max(ks) - n_others):
            raise ConfigError(
                f"k_shared={self.k_shared} does not fit k={self.k}, k_start={self.k_start} and "
                f"n_shared_latents={self.n_shared_latents} of d_sae={self.d_sae}: it must be at most the number of "
                "shared latents, less than k, and leave no more than the other latents can be active."
            )

    def k_at(self, step: int) -> float:
        """k(t) = k_start - (k_start - k) t / k_annealing_steps, and k from then on."""
        if self.k_start is None or step >= self.k_annealing_steps:
            return self.k
        return self.k_start - (self.k_start - self.k) * step / self.k_annealing_steps

    @override
    def check_batch_size(self, n_tokens: int) -> None:
        ks = {"k": self.k}
        if self.k_shared is not None:
            ks = {"k_shared": self.k_shared, "k - k_shared": self.k - self.k_shared}
        for name, k in ks.items():
            if int(k * n_tokens) < 1:
                raise ConfigError(
                    f"{name}={k:g} keeps no code at all in batches of {n_tokens} tokens: nothing would be learned, and "
                    "there would be no inference threshold. Raise it, or train_batch_size_tokens."
                )

    @property
    def group_sizes(self) -> list[int]:
        """Numbers of latents that are selected together: all, or the shared ones and the others."""
        if self.k_shared is None:
            return [self.d_sae]
        return [self.n_shared_latents, self.d_sae - self.n_shared_latents]

    @override
    @classmethod
    def architecture(cls) -> str:
        return "batchtopk_crosscoder"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return JumpReLUSAEConfig


class BatchTopKTrainingCrosscoder(AuxKTrainingCrosscoder[BatchTopKTrainingCrosscoderConfig]):
    """BatchTopK crosscoder (Minder et al. 2025), saved as SAELens's `JumpReLUSAE`.

    p = ReLU(x W_enc + b_enc) and score v = p * c with c the summed decoder norms. While training, the k * batch largest
    scores of a batch stay: f = p there and 0 elsewhere (the codes are not scaled by c, only selected by it). At
    inference f = p where v > theta, theta being the moving average of the smallest kept score, divided by the weight
    that it has gathered so far: SAELens's average starts at 0 and is too low by (1 - rate)^t at step t, this is not.

    loss = E_tokens[ sum over sources |x^s - x_hat^s|^2 ] + AuxK (`auxk_crosscoder.py`). The squared error is summed
    over the columns of all sources.

    With `k_shared` the designated shared latents are selected among themselves, k_shared a token, and the others among
    themselves, k - k_shared a token, each group with a threshold of its own.

    Saved thresholds are per latent, theta * n_j / c_j, in the units of the canonical weights.
    """

    topk_threshold: Float[Tensor, " n_groups"]
    topk_threshold_weight: Float[Tensor, " n_groups"]

    def __init__(self, cfg: BatchTopKTrainingCrosscoderConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        for name in _THRESHOLD_STATE:
            zeros = torch.zeros(len(cfg.group_sizes), dtype=torch.float64, device=self.device)
            self.register_buffer(name, zeros)
        self.current_k = cfg.k_at(0)
        self._selections = [LargestOfBatch() for _ in cfg.group_sizes]

    @override
    def encode_with_hidden_pre(
        self, x: Float[Tensor, "... d_in"]
    ) -> tuple[Float[Tensor, "... d_sae"], Float[Tensor, "... d_sae"]]:
        """Latent activations and pre-activations; selected over the batch in training mode, by threshold otherwise."""
        hidden_pre = self.pre_activations(x)
        acts, scores = self.scores(hidden_pre)
        kept = self._largest(scores) if self.training else scores > self._score_thresholds().to(scores.dtype)
        return self.hook_sae_acts_post(acts * kept), hidden_pre

    def _largest(self, scores: Float[Tensor, "... d_sae"]) -> Bool[Tensor, "... d_sae"]:
        """Where the largest scores of the batch stand, in every group as many as its share of k says."""
        n_rows = scores.shape[:-1].numel()
        kept: list[Tensor] = []
        for group, k in zip(scores.split(self.group_sizes, dim=-1), self._group_ks, strict=True):
            rows = torch.arange(n_rows, device=scores.device).repeat_interleave(group.shape[-1])
            n = int(k * self.division.n_tokens(n_rows))
            kept.append(self.division.largest_of_batch(group.flatten(), rows, n, n_rows).reshape(group.shape))
        return torch.cat(kept, dim=-1)

    @property
    def group_sizes(self) -> list[int]:
        """Numbers of latents that are here and are selected together."""
        return self.shard.counts(self.cfg.group_sizes)

    @property
    def _group_ks(self) -> list[float]:
        """How many latents a token, on average, are active in every group."""
        if self.cfg.k_shared is None:
            return [self.current_k]
        return [self.cfg.k_shared, self.current_k - self.cfg.k_shared]

    @property
    @override
    def k_now(self) -> float:
        """The annealed k."""
        return self.current_k

    @override
    def largest_pairs(self, encoder: AnyEncoder) -> ScoredPairs:
        """The largest of the batch in every group."""
        found: list[ScoredPairs] = []
        start = 0
        for size, k, selection in zip(self.group_sizes, self._group_ks, self._selections, strict=True):
            n = int(k * self.division.n_tokens(encoder.n_rows))
            none = self.b_enc.detach().new_empty(0)  # a rank may hold no latent of a group
            pairs = ScoredPairs(none.long(), none, none)
            if size > 0:
                pairs = selection.select(encoder, slice(start, start + size), n)
            if self.division.is_divided:
                rows = pairs.flat // encoder.d_sae
                pairs = pairs.where(self.division.largest_of_batch(pairs.scores, rows, n, encoder.n_rows))
            found.append(pairs)
            start += size
        return found[0] if len(found) == 1 else found[0].joined(found[1]).in_order()

    def _score_thresholds(self) -> Float[Tensor, " d_sae"]:
        """The threshold theta of every latent's group."""
        sizes = torch.tensor(self.group_sizes, device=self.topk_threshold.device)
        return self.topk_threshold.repeat_interleave(sizes, output_size=len(self.shard))

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """One step's loss; also moves the inference threshold."""
        self.current_k = self.cfg.k_at(step_input.n_training_steps)
        output = super().training_forward_pass(step_input)
        self.update_topk_threshold(output.feature_acts)
        output.metrics["topk_threshold"] = self.topk_threshold[-1]
        if self.cfg.k_shared is not None:
            output.metrics["topk_threshold_shared"] = self.topk_threshold[0]
        output.metrics["k"] = self.current_k
        return output

    @torch.no_grad()
    def update_topk_threshold(self, feature_acts: Float[Tensor, "batch d_sae"]) -> None:
        """Move each group's threshold towards the smallest score that the batch kept of it."""
        rate = self.cfg.topk_threshold_lr
        smallest = self.division.least(self._smallest_scores(feature_acts))
        weight = (1 - rate) * self.topk_threshold_weight + rate
        average = (self.topk_threshold * self.topk_threshold_weight * (1 - rate) + smallest * rate) / weight
        # A batch without a positive code says nothing about the threshold.
        said = smallest.isfinite()
        # Assigned, not written in place: torch.compile drops writes to buffers under no_grad.
        self.topk_threshold = torch.where(said, average, self.topk_threshold)
        self.topk_threshold_weight = torch.where(said, weight, self.topk_threshold_weight)

    def _smallest_scores(self, feature_acts: Float[Tensor, "batch d_sae"]) -> Float[Tensor, " n_groups"]:
        """The smallest score of an active code in every group, infinite if there is none."""
        norms = self.decoder_norms().double()
        if not feature_acts.is_sparse:
            kept = torch.where(feature_acts > 0, feature_acts.double() * norms, torch.inf)
            none = kept.new_full((1,), torch.inf)  # a rank may hold no latent of a group
            groups = kept.split(self.group_sizes, dim=-1)
            return torch.stack([torch.cat([group.flatten(), none]).min() for group in groups])
        latents, acts = feature_acts.indices()[1], feature_acts.values()
        scores = torch.where(acts > 0, acts.double() * norms[latents], torch.inf)
        ends = list(itertools.accumulate(self.group_sizes))
        group = blocks_of(latents, ends)
        return scores.new_full((len(ends),), torch.inf).scatter_reduce_(0, group, scores, "amin")

    @torch.no_grad()
    def latent_thresholds(self) -> Float[Tensor, " d_sae"]:
        """The threshold of every latent's pre-activation at inference, theta / c_j.

        A latent that writes nothing has score 0 and never fires: its threshold is the largest finite number.

        Raises:
            ConfigError: No training step was made, so there is no threshold.
        """
        if (self.topk_threshold_weight == 0).any():
            raise ConfigError(
                "The BatchTopK crosscoder has no inference threshold yet: it is measured while training. Train it for "
                "at least one step with active latents before saving it."
            )
        norms = self.decoder_norms()
        never = torch.full_like(norms, torch.finfo(norms.dtype).max)
        return torch.where(norms > 0, self._score_thresholds().to(norms.dtype) / norms, never)

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        """Canonical form, with the global threshold written as one JumpReLU threshold a latent."""
        super().process_state_dict_for_saving_inference(state_dict)
        for name in _THRESHOLD_STATE:
            del state_dict[name]
        state_dict["threshold"] = self.latent_thresholds() * self.canonical_norms()

    @override
    def left_out_of_inference(self) -> dict[str, Tensor]:
        """Also the moving average of the threshold, and the weight that it has gathered."""
        buffers = dict(self.named_buffers())
        return {**super().left_out_of_inference(), **{name: buffers[name] for name in _THRESHOLD_STATE}}

    @override
    def process_state_dict_from_inference(self, state_dict: dict[str, Tensor], left_out: dict[str, Tensor]) -> None:
        """Undo the canonical form; the threshold goes on from where it was."""
        super().process_state_dict_from_inference(state_dict, left_out)
        del state_dict["threshold"]
        for name in _THRESHOLD_STATE:
            state_dict[name] = left_out[name]
