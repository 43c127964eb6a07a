"""When and how strongly each latent fires: frequency, size, quantiles, and on which data sets and token roles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.diffing.active_latents import ActiveLatents
from sae_lens_crosscoder.diffing.sae_pass import CodedBatch
from sae_lens_crosscoder.errors import ConfigError, DataError

_BINS_PER_OCTAVE = 16
_LOWEST_OCTAVE, _HIGHEST_OCTAVE = -12, 20
_N_BINS = _BINS_PER_OCTAVE * (_HIGHEST_OCTAVE - _LOWEST_OCTAVE)


@dataclass(frozen=True)
class GroupStatistics:
    """One kind of group, such as the data sets of a mixture: how every latent fires on the tokens of each group."""

    names: Sequence[str]
    """The groups, in the order of the columns."""

    n_tokens: Int[Tensor, " n_groups"]
    """Tokens of each group."""

    frequency: Float[Tensor, "d_sae n_groups"]
    """Share of the group's tokens that the latent fires on; NaN for a group without tokens."""

    mean: Float[Tensor, "d_sae n_groups"]
    """Mean activation over all tokens of the group, zeros included; NaN for a group without tokens."""

    mass_share: Float[Tensor, "d_sae n_groups"]
    """Share of the latent's summed activation that falls on the group. Rows sum to 1; NaN if it never fires."""

    def mass_share_of(self, *names: str) -> Float[Tensor, " d_sae"]:
        """Share of every latent's summed activation that falls on these groups together, such as "template".

        Raises:
            ConfigError: A group that is not there.
        """
        if unknown := [name for name in names if name not in self.names]:
            raise ConfigError(f"There are no groups {unknown}, only {list(self.names)}.")
        return self.mass_share[:, [self.names.index(name) for name in names]].sum(dim=1)


@dataclass(frozen=True)
class LatentStatisticsResult:
    """What `LatentStatistics` has found, for every latent; NaN where it never fired and nothing can be said."""

    n_tokens: int
    """Tokens that were added."""

    n_active: Int[Tensor, " d_sae"]
    """Tokens that the latent fired on."""

    max: Float[Tensor, " d_sae"]
    """Its largest activation, exactly; 0 if it never fired."""

    mean_active: Float[Tensor, " d_sae"]
    """Its mean activation over the tokens that it fired on."""

    groups: Mapping[str, GroupStatistics]
    """By kind of group."""

    histogram: Int[Tensor, "d_sae n_bins"]
    """Activations in bins of equal ratio, from which the quantiles are read."""

    @property
    def frequency(self) -> Float[Tensor, " d_sae"]:
        """Share of all tokens that the latent fires on."""
        return self.n_active.double() / self.n_tokens

    def quantile(self, q: float) -> Float[Tensor, " d_sae"]:
        """The smallest activation that at least a share `q` of the latent's activations above zero do not exceed.

        Read from a histogram, at most 2.2 % (a factor 2^(1/32)) off for activations from 2^-12 to 2^20, and never above
        the maximum; beyond that range it is the end of the range. NaN for a latent that never fired.

        Raises:
            ConfigError: `q` outside (0, 1].
        """
        if not 0 < q <= 1:
            raise ConfigError(f"Quantiles are asked for by a share in (0, 1], not {q}.")
        # Less a little, or rounding would make 0.55 of 20 the twelfth.
        wanted = (q * self.n_active.double() - 1e-9).ceil().clamp(min=1)
        # How many bins hold fewer than are wanted up to their end: the index of the bin that the quantile lies in.
        bins = (self.histogram.cumsum(dim=1) < wanted[:, None]).sum(dim=1)
        middle = torch.exp2((bins.double() + 0.5) / _BINS_PER_OCTAVE + _LOWEST_OCTAVE)
        return torch.where(self.n_active > 0, torch.minimum(middle, self.max.double()), torch.nan)


@dataclass
class _Counts:
    """Tokens, firings and summed activations (float64), for every latent and each of some numbered groups."""

    n_tokens: Int[Tensor, " n_groups"]
    n_active: Int[Tensor, "d_sae n_groups"]
    activation: Float[Tensor, "d_sae n_groups"]

    @classmethod
    def zeros(cls, d_sae: int, n_groups: int, device: torch.device) -> _Counts:
        n_active = torch.zeros(d_sae, n_groups, dtype=torch.long, device=device)
        return cls(n_active.new_zeros(n_groups), n_active, n_active.double())

    def add(self, active: ActiveLatents, groups: Tensor) -> None:
        n_groups = len(self.n_tokens)
        self.n_tokens += torch.bincount(groups, minlength=n_groups)
        cells = active.latents * n_groups + groups[active.rows]
        self.n_active.view(-1).index_add_(0, cells, torch.ones_like(cells))
        self.activation.view(-1).index_add_(0, cells, active.values.double())

    def merge(self, other: _Counts) -> None:
        self.n_tokens += other.n_tokens
        self.n_active += other.n_active
        self.activation += other.activation

    def compute(self, names: Sequence[str]) -> GroupStatistics:
        return GroupStatistics(
            names=names,
            n_tokens=self.n_tokens.clone(),
            frequency=self.n_active.double() / self.n_tokens,
            mean=self.activation / self.n_tokens,
            mass_share=self.activation / self.activation.sum(dim=1, keepdim=True),
        )


@dataclass
class _State:
    total: _Counts
    by_kind: dict[str, _Counts]
    max: Float[Tensor, " d_sae"]
    histogram: Int[Tensor, "d_sae n_bins"]

    @classmethod
    def zeros(cls, d_sae: int, groups: Mapping[str, Sequence[str]], device: torch.device) -> _State:
        return cls(
            total=_Counts.zeros(d_sae, 1, device),
            by_kind={kind: _Counts.zeros(d_sae, len(names), device) for kind, names in groups.items()},
            max=torch.zeros(d_sae, device=device, dtype=torch.float64),
            histogram=torch.zeros(d_sae, _N_BINS, dtype=torch.int32, device=device),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by a name of its own; they share memory with the state."""
        counts = {"total": self.total, **{f"groups.{kind}": counts for kind, counts in self.by_kind.items()}}
        by_name = {
            f"{kind}.{name}": getattr(each, name)
            for kind, each in counts.items()
            for name in ("n_tokens", "n_active", "activation")
        }
        return {"max": self.max, "histogram": self.histogram, **by_name}


class LatentStatistics:
    """Accumulator (`run_pass`) of frequency, maximum, quantiles and means, overall and by group of tokens.

    Memory is 2 kB a latent and 16 bytes for each latent and group, whatever the number of tokens.

    Args:
        groups: Names of the groups of each kind, such as `{"dataset": ["web", "chat"], "role": [...]}`. Every batch is
            then a `TokenBatch` whose `groups` have a number for each token, counted from 0 in the order of the names.
    """

    def __init__(self, groups: Mapping[str, Sequence[str]] | None = None) -> None:
        self.groups = {kind: tuple(names) for kind, names in (groups or {}).items()}
        self._state: _State | None = None

    def add(self, batch: CodedBatch) -> None:
        """Take in one batch.

        Raises:
            DataError: A batch without the groups, or with numbers that have no name.
        """
        active = batch.active
        device = active.values.device
        if self._state is None:
            self._state = _State.zeros(active.d_sae, self.groups, device)
        state = self._state
        numbers = {kind: _group_numbers(batch, kind, names) for kind, names in self.groups.items()}
        state.total.add(active, torch.zeros(active.n_rows, dtype=torch.long, device=device))
        for kind, ids in numbers.items():
            state.by_kind[kind].add(active, ids)
        state.max.scatter_reduce_(0, active.latents, active.values.double(), "amax")
        bins = (active.values.double().log2() - _LOWEST_OCTAVE) * _BINS_PER_OCTAVE
        cells = active.latents * _N_BINS + bins.floor().long().clamp(0, _N_BINS - 1)
        state.histogram.view(-1).index_add_(0, cells, torch.ones_like(cells, dtype=torch.int32))

    def merge(self, other: LatentStatistics) -> None:
        """Add what another accumulator has found on other tokens.

        Raises:
            ConfigError: It has other groups, or latents of another SAE.
        """
        theirs = other._state
        if theirs is None:
            return
        d_sae = len(theirs.max)
        if self._state is None:
            self._state = _State.zeros(d_sae, self.groups, theirs.max.device)
        ours = self._state
        if self.groups != other.groups or len(ours.max) != d_sae:
            raise ConfigError(
                f"The two accumulators have groups {self.groups} and {other.groups} and {len(ours.max)} and {d_sae} "
                "latents: merge only parts of one stream."
            )
        ours.total.merge(theirs.total)
        for kind, counts in ours.by_kind.items():
            counts.merge(theirs.by_kind[kind])
        ours.max = torch.maximum(ours.max, theirs.max)
        ours.histogram += theirs.histogram

    def state_dict(self) -> dict[str, Tensor]:
        """What was counted so far, for `load_state_dict` of another process; empty before the first batch."""
        return {} if self._state is None else self._state.tensors()

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on from the counts of `state_dict`, which were made with these groups."""
        if not state:
            self._state = None
            return
        self._state = _State.zeros(len(state["max"]), self.groups, device)
        for name, tensor in self._state.tensors().items():
            tensor.copy_(state[name])

    def compute(self) -> LatentStatisticsResult:
        """The statistics over all tokens that were added.

        Raises:
            DataError: There were none.
        """
        state = self._state
        if state is None:
            raise DataError("No tokens were added, so latents have no statistics: the stream of batches was empty.")
        n_active = state.total.n_active[:, 0]
        return LatentStatisticsResult(
            n_tokens=int(state.total.n_tokens),
            n_active=n_active.clone(),
            max=state.max.clone(),
            mean_active=state.total.activation[:, 0] / n_active,
            groups={kind: state.by_kind[kind].compute(names) for kind, names in self.groups.items()},
            histogram=state.histogram.clone(),
        )


def _group_numbers(batch: CodedBatch, kind: str, names: Sequence[str]) -> Int[Tensor, " n_tokens"]:
    numbers = batch.tokens.groups.get(kind)
    if numbers is None:
        raise DataError(
            f"A batch does not say which {kind!r} its tokens belong to: pass TokenBatch(x, groups={{{kind!r}: ...}}), "
            "or leave the groups out of LatentStatistics."
        )
    if bool(((numbers < 0) | (numbers >= len(names))).any()):
        raise DataError(
            f"A batch numbers its {kind!r} groups from {int(numbers.min())} to {int(numbers.max())}, but there are "
            f"{len(names)} names ({', '.join(names)}): number them from 0 to {len(names) - 1}."
        )
    return numbers.long()
