"""What all crosscoder training architectures share: per-source decoder norms, initialisation and the canonical form.

Only training knows about sources. What is saved for inference is a stock SAELens SAE over the raw joint activations.
"""

from __future__ import annotations

import weakref
from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar, get_args

import torch
from jaxtyping import Float
from sae_lens import TrainingSAE, TrainingSAEConfig
from torch import Tensor, nn
from typing_extensions import override

from sae_lens_crosscoder._saelens import TrainStepInput, TrainStepOutput
from sae_lens_crosscoder.errors import ConfigError, ShapeError
from sae_lens_crosscoder.training.difference_loss import difference_weighted_errors
from sae_lens_crosscoder.training.geometric_median import geometric_median
from sae_lens_crosscoder.training.latent_layout import LatentLayout, check_widths
from sae_lens_crosscoder.training.parallel.division import Division
from sae_lens_crosscoder.training.parallel.latent_shard import LatentShard
from sae_lens_crosscoder.training.sparse.encoder import EncoderPrecision
from sae_lens_crosscoder.training.sparse.gradient_memory import GradientMemory

CANONICAL_NORMS = "canonical_norms"
"""Tensor saved beside the canonical form: n_j, by which latents were multiplied."""

DecoderBiasInit = Literal["zeros", "geometric_median"]
DecoderNorm = Literal["sum", "joint", "none"]


@dataclass(kw_only=True)
class TrainingCrosscoderConfig(TrainingSAEConfig, ABC):
    """What every crosscoder configuration has beside SAELens's own fields.

    `normalize_activations="expected_average_only_in"` means here: *each source* is scaled to mean norm sqrt(its width).

    Raises:
        ConfigError: A normalisation that cannot be folded per source, an unknown choice, or float16 weights.
    """

    schedule_fields: ClassVar[tuple[str, ...]] = ()
    """Fields that say how training begins; a run that goes on from a parent takes its own, not the parent's."""

    source_widths: list[int] = field(default_factory=list[int])
    """Columns of `d_in` that belong to each source, in order. The runner fills it in from the sources."""

    decoder_init_norm: float | None = 0.08
    """Norm of each source's slice of every decoder row at the start; None keeps the random rows as they are drawn."""

    decoder_norm: DecoderNorm = "sum"
    """The norm c_j of a latent in penalties and selection: the "sum" of its per-source norms (a crosscoder), the
    "joint" norm of the whole row (which favours latents of several sources), or "none" (1)."""

    difference_weight: float = 0.0
    """Weight of the error of the difference, lambda in [-1, 0], for two sources of equal width: the reconstruction loss
    is |e_1|^2 + |e_2|^2 + 2 lambda e_1 . e_2. 0 is the usual loss, -1 reconstructs only the difference."""

    n_shared_latents: int = 0
    """Designated shared latents, the first ones: one decoder row for all sources, which must be of equal width."""

    n_exclusive_latents: list[int] = field(default_factory=list[int])
    """Latents that may read and write one source only, a count for each source; they follow the shared ones. They start
    with lower scores than the others: give the run time, and keep AuxK on where there is one."""

    encoder_sources: list[int] = field(default_factory=list[int])
    """Positions of the sources that the encoder reads, while the decoder writes all; empty reads all."""

    b_dec_init: DecoderBiasInit = "zeros"
    """Decoder bias at the start: zeros, or the geometric median of the first batch of activations."""

    apply_b_dec_to_input: bool = False
    """Subtract the decoder bias before encoding. Published crosscoders do not."""

    encoder_precision: EncoderPrecision = "float32"
    """Precision of the codes in the sparse training step. "float32": that of the weights. "bfloat16": products of
    rounded activations and weights, which saves scoring the active pairs anew; weights and Adam moments keep their
    dtype. The dense step does not read it. With `autocast` it is "bfloat16", and AuxK's products are rounded."""

    normalize_activations: str = "expected_average_only_in"  # pyright: ignore[reportIncompatibleVariableOverride]
    """"expected_average_only_in" scales every source to mean norm sqrt(width), "none" leaves activations alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalize_activations not in ("none", "expected_average_only_in"):
            raise ConfigError(
                f"normalize_activations={self.normalize_activations!r} is not defined per source. Use "
                "'expected_average_only_in' (each source to mean norm sqrt(width)) or 'none'."
            )
        if self.dtype == "float16":
            raise ConfigError(
                "dtype='float16' cannot train a crosscoder: Adam's epsilon rounds to 0 and the weights become NaN. Use "
                "'float32' (with autocast=True for speed) or 'bfloat16'; activations may still be kept in float16 "
                "(buffer_dtype)."
            )
        choices = {"b_dec_init": DecoderBiasInit, "decoder_norm": DecoderNorm, "encoder_precision": EncoderPrecision}
        for name, known in choices.items():
            if (value := getattr(self, name)) not in get_args(known):
                raise ConfigError(f"{name}={value!r} is unknown. Use one of {', '.join(get_args(known))}.")
        if not -1 <= self.difference_weight <= 0:
            raise ConfigError(
                f"difference_weight={self.difference_weight} must lie in [-1, 0]: 0 is the usual loss, -1 reconstructs "
                "only the difference."
            )
        if self.d_sae < 1:
            raise ConfigError(f"d_sae={self.d_sae} must be a positive number of latents.")
        if self.source_widths:
            self.check_sources()

    @property
    def starts_from_data(self) -> bool:
        """Whether some weights are set from the first batch of activations."""
        return self.b_dec_init != "zeros"

    def fill_in_schedule(self, n_steps: int) -> None:
        """Set what is left to the length of the run, such as a warm-up that is a share of it."""

    @property
    def layout(self) -> LatentLayout:
        """Which sources each latent may read and write."""
        return LatentLayout(
            self.d_sae, self.source_widths, self.n_shared_latents, self.n_exclusive_latents, self.encoder_sources
        )

    def check_batch_size(self, n_tokens: int) -> None:
        """Raises:
        ConfigError: Training batches that are too small for the architecture.
        """

    def check_sources(self) -> None:
        """Raises:
        ShapeError: The widths do not add up to `d_in`, or shared latents of sources of different width.
        ConfigError: A difference-weighted loss of other than two sources of equal width, or designated latents that
            do not fit the sources.
        """
        check_widths(self.source_widths, self.d_in)
        self.layout.check_written()
        if self.difference_weight != 0 and (len(self.source_widths) != 2 or len(set(self.source_widths)) != 1):
            raise ConfigError(
                f"difference_weight={self.difference_weight} compares two sources of equal width, not of widths "
                f"{self.source_widths}. Set it to 0."
            )


T_TRAINING_CROSSCODER_CONFIG = TypeVar("T_TRAINING_CROSSCODER_CONFIG", bound=TrainingCrosscoderConfig)


class TrainingCrosscoder(TrainingSAE[T_TRAINING_CROSSCODER_CONFIG], ABC):
    """Base of the training crosscoders: a SAELens `TrainingSAE` whose decoder norm is a sum over sources.

    The decoder norm of latent j is c_j = sum over sources s of g_s * |d_j^s| (or what `decoder_norm` says), where g_s
    is the activation scale that was folded into the weights (1 while training): always the norm in the units that the
    crosscoder was trained in, so that folding changes no code and no selection (Lindsey et al. 2024; Kissane et al.
    2024).

    Raises:
        ShapeError: `source_widths` that do not add up to `d_in`.
    """

    b_enc: nn.Parameter
    encoder_bias_names: ClassVar[tuple[str, ...]] = ("b_enc",)
    """Parameters that add to pre-activations, one number a latent."""
    source_scales: Float[Tensor, " n_sources"]

    def __init__(self, cfg: T_TRAINING_CROSSCODER_CONFIG, use_error_term: bool = False) -> None:
        cfg.check_sources()
        self.layout = cfg.layout
        self.division = Division()
        """How steps are divided over ranks."""
        self.gradient_memory = GradientMemory()
        """Where a sparse step writes gradients of its weights."""
        self._held_weights: dict[str, weakref.ref[nn.Parameter]] = {}
        super().__init__(cfg, use_error_term)
        if cfg.difference_weight != 0:
            self.mse_loss_fn = partial(difference_weighted_errors, weight=cfg.difference_weight)
        self.register_buffer("source_scales", torch.ones(len(cfg.source_widths), dtype=self.dtype, device=self.device))

    @override
    def initialize_weights(self) -> None:
        """Random decoder rows with equal norms in every source, the encoder their transpose, zero biases."""
        super().initialize_weights()
        cfg = self.cfg
        rows = torch.randn(cfg.d_sae, cfg.d_in, dtype=self.dtype, device=self.device)
        if cfg.decoder_init_norm is not None:
            slices = rows.split(cfg.source_widths, dim=-1)
            rows = torch.cat([part * (cfg.decoder_init_norm / part.norm(dim=-1, keepdim=True)) for part in slices], -1)
        self.layout.tie_(rows)
        self.layout.clear_decoder_(rows)
        columns = rows.clone().T  # a latent's encoder weights are contiguous: they are read and updated together
        self.layout.clear_encoder_(columns)
        self.W_dec, self.W_enc = nn.Parameter(rows), nn.Parameter(columns)
        for name in self.encoder_bias_names:
            setattr(self, name, nn.Parameter(torch.zeros(cfg.d_sae, dtype=self.dtype, device=self.device)))

    @property
    def shard(self) -> LatentShard:
        """The latents that are here."""
        return self.division.shard(self.cfg.d_sae)

    @override
    def process_sae_in(self, sae_in: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_in"]:
        """What is encoded: activations, minus the decoder bias if `apply_b_dec_to_input`.

        SAELens subtracts the bias times 0 otherwise, whose gradient takes one more product of a step.
        """
        sae_in = self.hook_sae_input(self.reshape_fn_in(sae_in.to(self.dtype)))
        sae_in = self.run_time_activation_norm_fn_in(sae_in)
        return sae_in - self.b_dec if self.cfg.apply_b_dec_to_input else sae_in

    def pre_activations(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_sae"]:
        """X W_enc + b_enc."""
        return self.hook_sae_acts_pre(self.process_sae_in(x) @ self.W_enc + self.b_enc)

    @override
    def decode(self, feature_acts: Float[Tensor, "... n_here"]) -> Float[Tensor, "... d_in"]:
        """Codes times W_dec, plus b_dec."""
        sae_out = self.hook_sae_recons(self.division.sum_of_latents(feature_acts @ self.W_dec) + self.b_dec)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(sae_out), self.d_head)

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """One step's loss."""
        self.hold_layout()
        return super().training_forward_pass(step_input)

    def hold_layout(self) -> None:
        """Keep gradients, and so weights and Adam moments, inside the layout; called before every step."""
        if not self.layout.is_free:
            self._hold_layout()

    @torch.compiler.disable()  # pyright: ignore[reportUntypedFunctionDecorator]
    def _hold_layout(self) -> None:
        """Keep gradients, and so weights and Adam moments, inside the layout.

        Gradients are cut by hooks on the parameters, which loading and copying replace: they are looked for in every
        step.
        """
        if self.cfg.n_shared_latents and not torch.all(self.source_scales == 1):
            raise ConfigError(
                "The activation scales are folded into the weights, so that the rows of shared latents differ by them "
                "and cannot be trained as one. Train a checkpoint from before the end of a run."
            )
        for name, cut in (("W_enc", self._cut_encoder_gradient), ("W_dec", self._cut_decoder_gradient)):
            weights: nn.Parameter = getattr(self, name)
            held = self._held_weights.get(name)
            if held is None or held() is not weights:
                weights.register_hook(cut)
                self._held_weights[name] = weakref.ref(weights)

    def _cut_encoder_gradient(self, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        self.layout.clear_encoder_(gradient)
        return gradient

    def _cut_decoder_gradient(self, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        self.layout.clear_decoder_(gradient)
        self.layout.sum_tied_(gradient)
        return gradient

    def source_decoder_norms(self) -> Float[Tensor, "d_sae n_sources"]:
        """|d_j^s| for every latent and source, of the weights as they are."""
        return torch.stack([part.norm(dim=-1) for part in self.W_dec.split(self.cfg.source_widths, dim=-1)], dim=-1)

    def decoder_norms(self) -> Float[Tensor, " d_sae"]:
        """c_j, the decoder norm in training units that penalties and selection use, with gradient."""
        if self.cfg.decoder_norm == "none":
            return self.W_dec.new_ones(len(self.W_dec))
        norms = self.source_decoder_norms() * self.source_scales.to(self.W_dec.dtype)
        return norms.sum(dim=-1) if self.cfg.decoder_norm == "sum" else norms.norm(dim=-1)

    @override
    @torch.no_grad()
    def get_W_dec_norm(self) -> Float[Tensor, " d_sae"]:
        """The sum over sources of the decoder norms of the weights as they are; 1 for a latent that writes nothing."""
        norms = self.source_decoder_norms().sum(dim=-1)
        return torch.where(norms > 0, norms, torch.ones_like(norms))

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, scaling_factor: float | Sequence[float] | Float[Tensor, " n_sources"]
    ) -> None:
        """Fold each source's activation scale into the weights, so that the crosscoder takes raw activations.

        W_enc^s <- g_s W_enc^s, W_dec^s <- W_dec^s / g_s, b_dec^s <- b_dec^s / g_s. Codes are unchanged and
        reconstructions are in raw units.

        Args:
            scaling_factor: One factor a source, or one for all.

        Raises:
            ShapeError: Another number of factors than of sources.
        """
        factors = torch.as_tensor(scaling_factor, dtype=torch.float64, device=self.W_dec.device)
        if factors.ndim == 0:
            factors = factors.expand(len(self.cfg.source_widths))
        if factors.shape != self.source_scales.shape:
            raise ShapeError(f"{factors.numel()} activation scales were given for {len(self.source_scales)} sources.")
        columns = self._by_column(factors).to(self.W_dec.dtype)
        self.W_enc.mul_(columns[:, None])
        self.W_dec.div_(columns)
        self.b_dec.div_(columns)
        self.source_scales.mul_(factors.to(self.source_scales.dtype))
        self.cfg.normalize_activations = "none"

    def _by_column(self, factors: Float[Tensor, " n_sources"]) -> Float[Tensor, " d_in"]:
        """Each column's source's factor."""
        return factors.repeat_interleave(torch.tensor(self.cfg.source_widths, device=factors.device))

    @torch.no_grad()
    def initialize_from_data(self, sae_in: Float[Tensor, "batch d_in"]) -> None:
        """Set what starts from data, such as the decoder bias, from one batch of scaled activations."""
        if self.cfg.b_dec_init == "geometric_median":
            self.b_dec.copy_(geometric_median(sae_in.to(self.dtype)))

    @override
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        """Store W_enc row by row, as files have it."""
        state_dict["W_enc"] = state_dict["W_enc"].contiguous()

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        """Store W_enc latent by latent, as training has it."""
        state_dict["W_enc"] = state_dict["W_enc"].T.contiguous().T

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        """Bring the weights into canonical form: every latent's per-source decoder norms sum to 1.

        W_dec_j <- W_dec_j / n_j, W_enc_j <- n_j W_enc_j, b_enc_j <- n_j b_enc_j with n_j the sum of the raw norms:
        reconstructions are unchanged and activations of different latents compare.

        Raises:
            ConfigError: The activation scale is not folded yet, so that the saved SAE would take raw activations for
                scaled ones.
        """
        super().process_state_dict_for_saving_inference(state_dict)
        if self.cfg.normalize_activations != "none":
            raise ConfigError(
                "The crosscoder still expects scaled activations: saved so, stock SAELens would feed it raw ones. "
                "Call fold_activation_norm_scaling_factor with the scaler's factors first (fit() does so at its end)."
            )
        norms = self.canonical_norms()
        state_dict.pop("source_scales")
        state_dict["W_enc"] = (state_dict["W_enc"] * norms).contiguous()
        state_dict["W_dec"] = state_dict["W_dec"] / norms[:, None]
        for name in self.encoder_bias_names:
            state_dict[name] = state_dict[name] * norms

    @torch.no_grad()
    def left_out_of_inference(self) -> dict[str, Tensor]:
        """What the canonical form does not hold and training needs to go on from it, saved beside it."""
        return {CANONICAL_NORMS: self.canonical_norms()}

    @torch.no_grad()
    def load_inference_state_dict(
        self, state_dict: dict[str, Any], left_out: dict[str, Tensor], scaling_factor: Sequence[float]
    ) -> None:
        """Take the weights of a saved crosscoder, as they were in training: the inverse of folding and saving.

        W_dec_j <- n_j W_dec_j, W_enc_j <- W_enc_j / n_j, b_enc_j <- b_enc_j / n_j, then W_enc^s <- W_enc^s / g_s,
        W_dec^s <- g_s W_dec^s, b_dec^s <- g_s b_dec^s; computed in float64, so that only the saved file's rounding is
        left.

        Args:
            state_dict: The stock SAELens weights.
            left_out: What `left_out_of_inference` gave when they were saved.
            scaling_factor: The factors g_s that were folded into them, one a source.
        """
        state = {name: tensor.double() for name, tensor in state_dict.items()}
        lost = {name: tensor.to(self.device).double() for name, tensor in left_out.items()}
        self.process_state_dict_from_inference(state, lost)
        factors = torch.tensor(list(scaling_factor), dtype=torch.float64, device=self.device)
        columns = self._by_column(factors)
        state["W_enc"] = state["W_enc"] / columns[:, None]
        state["W_dec"] = state["W_dec"] * columns
        self.layout.tie_(state["W_dec"])  # equal up to the saved file's rounding
        state["b_dec"] = state["b_dec"] * columns
        state["source_scales"] = torch.ones_like(factors)
        self.load_state_dict(state)

    def process_state_dict_from_inference(self, state_dict: dict[str, Tensor], left_out: dict[str, Tensor]) -> None:
        """Undo `process_state_dict_for_saving_inference`, in place."""
        norms = left_out[CANONICAL_NORMS]
        state_dict["W_enc"] = state_dict["W_enc"] / norms
        state_dict["W_dec"] = state_dict["W_dec"] * norms[:, None]
        for name in self.encoder_bias_names:
            state_dict[name] = state_dict[name] / norms

    @torch.no_grad()
    def canonical_norms(self) -> Float[Tensor, " d_sae"]:
        """n_j, by which latents are multiplied in the canonical form; without gradient."""
        return self.get_W_dec_norm()
