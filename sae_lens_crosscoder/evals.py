"""Evaluation of a crosscoder: sparsity, explained variance in three definitions, and CE and KL of every model.

CE and KL come from SAELens's own `run_evals` on `JointModel.view(label)`, so they mean what SAELens users know. Models
that each read tokens of their own are measured by `splicing.spliced_metrics`, with the same definitions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from sae_lens import SAE, run_evals
from torch import Tensor

from sae_lens_crosscoder._saelens import ActivationScaler, DataProvider, EvalConfig
from sae_lens_crosscoder.activations import PairedActivationsStore
from sae_lens_crosscoder.activations.batches import ShardedBatches, TrainingBatches
from sae_lens_crosscoder.errors import ConfigError, DataError
from sae_lens_crosscoder.joint_model import JOINT_HOOK_NAME, JointModel
from sae_lens_crosscoder.progress import Bar, token_bar
from sae_lens_crosscoder.splicing import spliced_metrics

_BEHAVIOUR_GROUPS = ("model_performance_preservation", "model_behavior_preservation")


@dataclass(frozen=True)
class EvalSequences:
    """Held-out token sequences in the shape that SAELens's `run_evals` asks of an activation store."""

    sequences: Int[Tensor, "n_sequences context"]
    store_batch_size_prompts: int

    @property
    def context_size(self) -> int:
        """Tokens of a sequence."""
        return self.sequences.shape[1]

    @property
    def n_batches(self) -> int:
        """Batches that cover every sequence once."""
        return -(-len(self.sequences) // self.store_batch_size_prompts)

    def batches(self) -> Iterator[Int[Tensor, "batch context"]]:
        """Every sequence once."""
        return iter(self.sequences.split(self.store_batch_size_prompts))


class _EvalStore:
    """Serves the sequences one batch after the other to `run_evals`, which takes one more after each."""

    def __init__(self, data: EvalSequences) -> None:
        self._batches = data.batches()
        self.store_batch_size_prompts = data.store_batch_size_prompts
        self.context_size = data.context_size

    def get_batch_tokens(self, batch_size: int | None = None) -> Tensor:
        return next(self._batches)

    def reset_input_dataset(self) -> None:
        """Nothing to do: every evaluation has a store of its own."""


@dataclass
class ExplainedVariance:
    """Sums from which explained variance is computed in the three definitions of the field (float64).

    With e = x - x_hat, and means over all tokens that were added:

    - `explained_variance`: 1 - E|e|^2 / E|x - mean x|^2 (SAELens, crosscode).
    - `explained_variance_mean_of_ratios`: E[1 - |e|^2 / |x - mean x|^2], a mean of per-token ratios (Kissane et al.).
    - `explained_variance_centred`: 1 - sum_d Var e_d / sum_d Var x_d, blind to a constant error (Minder et al.).

    On one checkpoint they differ by up to 0.05.

    Args:
        mean: Mean activation over the tokens that will be added.
    """

    mean: Float[Tensor, " d"]

    def __post_init__(self) -> None:
        self.n_tokens = 0
        self._squared_error = 0.0
        self._squared_deviation = 0.0
        self._ratios = 0.0
        self._error_sum = torch.zeros_like(self.mean)

    def add(self, x: Float[Tensor, "n d"], x_hat: Float[Tensor, "n d"]) -> None:
        """Add tokens with their reconstructions."""
        x, error = x.double(), x.double() - x_hat.double()
        squared_error = error.pow(2).sum(dim=-1)
        squared_deviation = (x - self.mean).pow(2).sum(dim=-1)
        self.n_tokens += len(x)
        self._squared_error += squared_error.sum().item()
        self._squared_deviation += squared_deviation.sum().item()
        self._ratios += (1 - squared_error / squared_deviation).sum().item()
        self._error_sum += error.sum(dim=0)

    def compute(self) -> dict[str, float]:
        """The three explained variances by name."""
        mean_error = self._error_sum / self.n_tokens
        centred = self._squared_error - self.n_tokens * mean_error.pow(2).sum().item()
        return {
            "explained_variance": 1 - self._squared_error / self._squared_deviation,
            "explained_variance_mean_of_ratios": self._ratios / self.n_tokens,
            "explained_variance_centred": 1 - centred / self._squared_deviation,
        }


def joined_heads(
    heads: Sequence[Mapping[str, Int[Tensor, "n_sequences row"]]],
) -> dict[str, Int[Tensor, "n_sequences_in_all row"]]:
    """For each data set the held-out sequences of all its shards, in their order."""
    return {title: torch.cat([head[title] for head in heads]) for title in heads[0]}


class CrosscoderEvaluator:
    """Measures a crosscoder on held-out sequences, overall and for each data set of the mixture.

    As SAELens's evaluator it is called by the trainer; `evaluate` gives the same as a nested dictionary:

    - `l0`, `dead_latents` (silent on all `n_tokens` evaluated tokens), the three explained variances of the joint
      activation;
    - `sources.<label>`: the three explained variances of that source, and SAELens's CE and KL metrics of its model with
      the reconstruction spliced in (`ce_loss_score` is 1 if the loss is that of the model itself and 0 if it is that of
      the zero-ablated model; `kl_div_score` likewise);
    - `datasets.<label>`: the same again for every data set, if there are several.

    Where each model reads tokens of its own, all of it is measured where tokens of all models end together, and
    `token_alignment.kept_share.<label>` says what share of a source's tokens that is.

    All positions of the held-out sequences count, but for `excluded_tokens`: `seqpos_slice` and the norm limit of the
    training data do not apply.

    Args:
        model: The joint model.
        sequences: Held-out sequences by data set.
        weights: Share of each data set in the overall figures.
        batch_size_prompts: Sequences that go through the models at once.
        excluded_tokens: Token ids that no metric counts, as in training.

    Raises:
        DataError: There are no sequences.
    """

    def __init__(
        self,
        model: JointModel,
        sequences: Mapping[str, Int[Tensor, "n_sequences context"]],
        weights: Mapping[str, float],
        batch_size_prompts: int,
        excluded_tokens: tuple[int, ...] = (),
    ) -> None:
        if not sequences or min(len(rows) for rows in sequences.values()) == 0:
            raise DataError(
                "There are no held-out sequences to evaluate on. Set n_eval_batches to at least 1, so that some are "
                "held out of training."
            )
        self.model = model
        self.excluded_tokens = excluded_tokens
        self._datasets = {label: EvalSequences(rows, batch_size_prompts) for label, rows in sequences.items()}
        largest = max(weights.values())
        shares = {label: max(1, round(len(rows) * weights[label] / largest)) for label, rows in sequences.items()}
        mixed = torch.cat([rows[: shares[label]] for label, rows in sequences.items()])
        self._mixture = EvalSequences(mixed, batch_size_prompts)

    @classmethod
    def from_store(cls, store: PairedActivationsStore, batch_size_prompts: int | None = None) -> CrosscoderEvaluator:
        """An evaluator on the sequences that a store holds out of training.

        Args:
            store: The store.
            batch_size_prompts: Sequences that go through the models at once; as many as in training by default.

        Raises:
            DataError: The store holds none out.
        """
        weights = dict(zip(store.dataset_labels, store.dataset_weights, strict=True))
        batch_size = batch_size_prompts or store.store_batch_size_prompts
        return cls(store.model, store.eval_sequences, weights, batch_size, store.cfg.excluded_tokens)

    def __call__(
        self, sae: SAE[Any], data_provider: DataProvider, activation_scaler: ActivationScaler
    ) -> dict[str, Any]:
        """The metrics with names such as "eval/sources/base/ce_loss_score", for W&B."""
        if isinstance(data_provider, (TrainingBatches, ShardedBatches)):
            # A pass of the harvesting thread would see what this puts into the models' hooks.
            with data_provider.paused():
                return flat_metrics(self.evaluate(sae, activation_scaler), "eval")
        return flat_metrics(self.evaluate(sae, activation_scaler), "eval")

    @torch.no_grad()
    def evaluate(
        self, sae: SAE[Any], activation_scaler: ActivationScaler | None = None, progress: bool = False
    ) -> dict[str, Any]:
        """All metrics of a crosscoder, in training (with its scaler) or saved.

        Args:
            sae: The crosscoder: any SAELens SAE on the joint hook.
            activation_scaler: The trainer's scaler, while its factors are not yet folded into the weights.
            progress: Show a progress bar.

        Raises:
            ConfigError: The SAE's metadata name another hook than the joint one, so that SAELens would measure there.
        """
        if sae.cfg.metadata.hook_name != JOINT_HOOK_NAME:
            raise ConfigError(
                f"The SAE's metadata name the hook {sae.cfg.metadata.hook_name!r}, but a crosscoder works on "
                f"{JOINT_HOOK_NAME!r}. Set sae.cfg.metadata.hook_name to it if the SAE takes joint activations."
            )
        scaler = activation_scaler or ActivationScaler()
        was_training = sae.training
        sae.eval()
        try:
            steps = [("", self._mixture)]
            if len(self._datasets) > 1:
                steps += list(self._datasets.items())
            # Two passes for the reconstruction, and one with each model's own.
            n_tokens = sum(data.sequences.numel() for _, data in steps) * (2 + len(self.model.sources))
            with token_bar("Evaluating", n_tokens, shown=progress) as bar:
                results = [(label, self._evaluate_on(sae, data, scaler, bar)) for label, data in steps]
        finally:
            sae.train(was_training)
        metrics: dict[str, Any] = results[0][1]
        if len(results) > 1:
            metrics["datasets"] = dict(results[1:])
        return metrics

    def _evaluate_on(self, sae: SAE[Any], data: EvalSequences, scaler: ActivationScaler, bar: Bar) -> dict[str, Any]:
        metrics = self._reconstruction(sae, data, scaler, bar)
        if self.model.aligner is not None:
            metrics["token_alignment"] = {"kept_share": self.model.kept_shares(data.sequences)}
        for label in self.model.sources.labels:
            metrics["sources"][label].update(self._behaviour(sae, label, data, scaler))
            bar.update(data.sequences.numel())
        return metrics

    def _behaviour(self, sae: SAE[Any], label: str, data: EvalSequences, scaler: ActivationScaler) -> dict[str, float]:
        if self.model.aligner is not None:
            return spliced_metrics(sae, self.model.view(label), data.batches(), scaler)
        groups, _ = run_evals(
            sae,
            cast(Any, _EvalStore(data)),
            self.model.view(label),
            scaler,
            EvalConfig(
                batch_size_prompts=data.store_batch_size_prompts,
                n_eval_reconstruction_batches=data.n_batches,
                compute_kl=True,
                compute_ce_loss=True,
            ),
            exclude_special_tokens=list(self.excluded_tokens) or False,
        )
        return {name: value for group in _BEHAVIOUR_GROUPS for name, value in groups[group].items()}

    def _reconstruction(self, sae: SAE[Any], data: EvalSequences, scaler: ActivationScaler, bar: Bar) -> dict[str, Any]:
        sources = self.model.sources
        parts = {"": slice(0, sources.d_in), **{label: sources.columns(label) for label in sources.labels}}
        mean = self._mean_activation(data, bar).to(sae.device)
        variances = {label: ExplainedVariance(mean[columns]) for label, columns in parts.items()}
        n_active = 0
        fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=sae.device)
        for x in self._activations(data, bar):
            x = x.to(sae.device)
            feature_acts = sae.encode(scaler.scale(x))
            x_hat = scaler.unscale(sae.decode(feature_acts))
            active = feature_acts != 0
            n_active += int(active.sum())
            fired |= active.any(dim=0)
            for label, columns in parts.items():
                variances[label].add(x[:, columns], x_hat[:, columns])
        n_tokens = variances[""].n_tokens
        return {
            "n_tokens": n_tokens,
            "l0": n_active / n_tokens,
            "dead_latents": int((~fired).sum()),
            "d_sae": sae.cfg.d_sae,
            **variances[""].compute(),
            "sources": {label: variances[label].compute() for label in sources.labels},
        }

    def _activations(self, data: EvalSequences, bar: Bar) -> Iterator[Float[Tensor, "n d_in"]]:
        excluded = torch.tensor(self.excluded_tokens, dtype=torch.long)
        for tokens in data.batches():
            joint = self.model.join(self.model.source_activations(tokens))
            if self.model.aligner is None:
                joint = joint[(~torch.isin(tokens, excluded)).to(joint.device)]
            yield joint
            bar.update(tokens.numel())

    def _mean_activation(self, data: EvalSequences, bar: Bar) -> Float[Tensor, " d_in"]:
        total, n_tokens = torch.zeros(self.model.sources.d_in, dtype=torch.float64), 0
        for x in self._activations(data, bar):
            total += x.double().sum(dim=0).cpu()
            n_tokens += len(x)
        return total / n_tokens


def flat_metrics(metrics: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Nested metrics as one mapping, with names such as "eval/sources/base/ce_loss_score"."""
    flat: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat.update(flat_metrics(cast("Mapping[str, Any]", value), f"{prefix}/{name}"))
        else:
            flat[f"{prefix}/{name}"] = value
    return flat
