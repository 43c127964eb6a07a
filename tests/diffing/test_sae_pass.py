"""One pass: every batch encoded once, what accumulators get, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from dictionaries import StandInSAE, make_sources, random_activations, random_sae
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig
from torch import Tensor

from sae_lens_crosscoder.diffing import (
    ActiveLatents,
    CodedBatch,
    LatentScaling,
    LatentStatistics,
    LinearDecoder,
    TokenBatch,
    TopContexts,
    run_pass,
)
from sae_lens_crosscoder.errors import ConfigError, DataError, ShapeError, SourceError


class Keeper:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.batches: list[CodedBatch] = []

    def add(self, batch: CodedBatch) -> None:
        self.batches.append(batch)


def dense(active: ActiveLatents) -> Tensor:
    codes = torch.zeros(active.n_rows, active.d_sae, dtype=active.values.dtype)
    codes[active.rows, active.latents] = active.values
    return codes


def test_every_batch_is_encoded_once_for_all_accumulators():
    sae, x, keepers = random_sae(), random_activations(), [Keeper(), Keeper()]
    run_pass(sae, x.split(80), keepers, make_sources())
    assert sae.n_encoded == 3
    for keeper in keepers:
        torch.testing.assert_close(torch.cat([dense(b.active) for b in keeper.batches]), sae.encode(x))
        torch.testing.assert_close(torch.cat([b.reconstruction for b in keeper.batches]), sae.decode(sae.encode(x)))
        assert [len(b.tokens.x) for b in keeper.batches] == [80, 80, 40]


@pytest.mark.parametrize("progress", [False, True])
def test_a_bar_is_shown_where_it_is_asked_for(progress: bool, capsys: pytest.CaptureFixture[str]):
    run_pass(random_sae(), random_activations(6).split(3), [], make_sources(), progress=progress)
    assert ("Reading latents" in capsys.readouterr().err) == progress


def test_activations_are_encoded_in_the_precision_of_the_weights():
    sae, x, keeper = random_sae(), random_activations(20).float(), Keeper()
    run_pass(sae, [x], [keeper], make_sources())
    torch.testing.assert_close(dense(keeper.batches[0].active), sae.encode(x.double()))


def test_sparse_codes_are_read_as_dense_ones():
    sae, x, keepers = random_sae(), random_activations(20), [Keeper(), Keeper()]
    run_pass(sae, [x], [keepers[0]], make_sources())
    sparse = dataclasses.replace(sae)
    sparse.encode = lambda x: sae.encode(x).to_sparse()
    sparse.decode = lambda feature_acts: sae.decode(feature_acts.to_dense())
    run_pass(sparse, [x], [keepers[1]], make_sources())
    plain, read = (keeper.batches[0].active for keeper in keepers)
    assert torch.equal(dense(read), dense(plain))


def test_a_decoder_that_was_read_before_is_not_read_again(monkeypatch: pytest.MonkeyPatch):
    sae, keeper = random_sae(), Keeper()
    decoder = LinearDecoder.of(sae)
    monkeypatch.setattr(LinearDecoder, "of", lambda sae: pytest.fail("it is read again"))
    run_pass(sae, [random_activations(5)], [keeper], make_sources(), decoder=decoder)
    assert keeper.batches[0].decoder is decoder


def test_batches_without_tokens_are_passed_over():
    keeper = Keeper()
    run_pass(random_sae(), random_activations(5).split([2, 0, 3]), [keeper], make_sources())
    assert [len(b.tokens.x) for b in keeper.batches] == [2, 3]


def test_a_batch_on_which_nothing_fires_is_a_batch():
    sae, keeper = random_sae(), Keeper()
    sae.b_enc[:] = -1e6
    run_pass(sae, [random_activations(5)], [keeper], make_sources())
    torch.testing.assert_close(keeper.batches[0].reconstruction, sae.b_dec.expand(5, 12))


def test_a_difference_is_the_second_source_minus_the_first_or_given_as_such():
    sources, x, keeper = make_sources(2, 6, "difference"), random_activations(), Keeper()
    run_pass(random_sae(6), [x, x[:, 6:] - x[:, :6]], [keeper], sources)
    for batch in keeper.batches:
        assert torch.equal(batch.sae_in, x[:, 6:] - x[:, :6])
    assert torch.equal(keeper.batches[0].tokens.x, x)


def test_a_difference_in_half_precision_is_taken_in_float32():
    x = torch.tensor([[256.0, 257.0]], dtype=torch.bfloat16)
    keeper = Keeper()
    run_pass(random_sae(1, dtype=torch.float32), [x], [keeper], make_sources(2, 1, "difference"))
    assert keeper.batches[0].sae_in.dtype == torch.float32


def test_what_is_known_about_tokens_reaches_the_accumulators():
    keeper = Keeper()
    numbers = torch.arange(4)
    batch = TokenBatch(random_activations(4), sequence_ids=numbers, positions=numbers + 1, groups={"role": numbers + 2})
    run_pass(random_sae(), [batch], [keeper], make_sources(), progress=True)
    given = keeper.batches[0].tokens
    assert given.sequence_ids is not None
    assert given.positions is not None
    assert (given.sequence_ids.tolist(), given.positions.tolist()) == ([0, 1, 2, 3], [1, 2, 3, 4])
    assert given.groups["role"].tolist() == [2, 3, 4, 5]


def test_the_sources_are_read_from_the_saes_metadata():
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=12, d_sae=10))
    with pytest.raises(SourceError, match="no 'sources'"):
        run_pass(sae, [], [])
    for name, value in make_sources().to_metadata().items():
        setattr(sae.cfg.metadata, name, value)
    keeper = Keeper()
    run_pass(sae, [random_activations(5, dtype=torch.float32)], [keeper])
    assert keeper.batches[0].sources == make_sources()


def test_nothing_of_the_pass_follows_gradients():
    sae, keeper = JumpReLUSAE(JumpReLUSAEConfig(d_in=12, d_sae=10)), Keeper()
    run_pass(sae, [random_activations(5, dtype=torch.float32)], [keeper], make_sources())
    batch = keeper.batches[0]
    tensors = (batch.active.values, batch.reconstruction, batch.decoder.directions, batch.decoder.bias)
    assert not any(tensor.requires_grad for tensor in tensors)
    assert all(parameter.grad is None for parameter in sae.parameters())


def test_the_decoder_is_the_saes_own_tensor_where_it_can_be():
    sae = random_sae()
    assert LinearDecoder.of(sae).directions.data_ptr() == sae.W_dec.data_ptr()
    with torch.inference_mode():
        assert LinearDecoder.of(sae).directions.data_ptr() == sae.W_dec.data_ptr()


@pytest.mark.parametrize("latent", [0, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_decoder_that_differs_from_its_weights_in_one_latent_is_read_from_decode(latent: int, dtype: torch.dtype):
    factors = torch.ones(10, dtype=dtype)
    factors[latent] += 1e-4
    sae = random_sae(d_in=150, dtype=dtype)

    class Scaling(StandInSAE):
        def decode(self, feature_acts: Tensor) -> Tensor:
            return super().decode(feature_acts * factors)

    scaling = Scaling(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
    torch.testing.assert_close(LinearDecoder.of(scaling).directions, sae.W_dec * factors[:, None], rtol=0, atol=0)


# ----------------------------------------------------------------------------------------- refusals


def refuse(sae: StandInSAE, batch: Tensor, message: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=message):
        run_pass(sae, [batch], [Keeper()], make_sources())


def test_tensors_that_do_not_fit_are_refused():
    refuse(random_sae(10), random_activations(5, 10), "reads 10 columns, but its sources base, chat have", ShapeError)
    refuse(random_sae(), random_activations(5, 11), r"\(5, 11\).*pass \(batch, 12\)\.", ShapeError)
    with pytest.raises(ShapeError, match=r"pass \(batch, 24\) with both models' activations, or \(batch, 12\)"):
        run_pass(random_sae(12), [random_activations(5, 11)], [], make_sources(2, 12, "difference"))
    with pytest.raises(ShapeError, match=r"5 tokens, but role has shape \(4,\)"):
        TokenBatch(random_activations(5), groups={"role": torch.arange(4)})


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_activations_that_are_no_numbers_are_refused(broken: float):
    x = random_activations(5)
    x[3, 2] = broken
    refuse(random_sae(), x, "infinite or not a number", DataError)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -1.0])
def test_latent_activations_that_are_no_sizes_are_refused(broken: float):
    class Broken(StandInSAE):
        def encode(self, x: Tensor) -> Tensor:
            return super().encode(x).index_fill(0, torch.tensor([4]), broken)

    sae = random_sae()
    broken_sae = Broken(**{f.name: getattr(sae, f.name) for f in dataclasses.fields(sae)})
    refuse(broken_sae, random_activations(5), "negative, infinite or not a number", DataError)


def test_a_decoder_in_half_precision_is_read_in_float32():
    sae = random_sae(dtype=torch.bfloat16)
    decoder = LinearDecoder.of(sae)
    assert decoder.directions.dtype == decoder.bias.dtype == torch.float32
    assert torch.equal(decoder.directions, sae.W_dec.float())


@pytest.mark.parametrize("size", [1.0, 1e-4])
@pytest.mark.parametrize(
    "decode",
    [lambda x_hat: x_hat / x_hat.norm(dim=1, keepdim=True), lambda x_hat: x_hat.relu()],
    ids=["normalised", "relu"],
)
def test_an_sae_whose_decoder_is_not_linear_is_refused(decode: Callable[[Tensor], Tensor], size: float):
    class Bent(StandInSAE):
        def decode(self, feature_acts: Tensor) -> Tensor:
            return decode(super().decode(feature_acts))

    sae = random_sae()
    sae = dataclasses.replace(sae, W_dec=sae.W_dec * size, b_dec=sae.b_dec * size)
    bent = Bent(**{f.name: getattr(sae, f.name) for f in dataclasses.fields(sae)})
    refuse(bent, random_activations(20), "decode is not linear", ConfigError)


def test_a_decoder_is_checked_on_the_first_batch_that_has_tokens():
    class Bent(StandInSAE):
        def decode(self, feature_acts: Tensor) -> Tensor:
            return super().decode(feature_acts).relu()

    sae = random_sae()
    bent = Bent(**{f.name: getattr(sae, f.name) for f in dataclasses.fields(sae)})
    with pytest.raises(ConfigError, match="decode is not linear"):
        run_pass(bent, random_activations(20).split([0, 20]), [], make_sources())


@pytest.mark.parametrize("normalization", ["layer_norm", "constant_norm_rescale"])
def test_an_sae_that_normalises_at_run_time_is_refused(normalization: str):
    sae = StandardSAE(StandardSAEConfig(d_in=12, d_sae=10, normalize_activations=normalization))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="normalises every token"):
        run_pass(sae, [random_activations(5, dtype=torch.float32)], [], make_sources())


def test_an_sae_that_reshapes_its_output_into_heads_is_refused():
    class Heads(StandInSAE):
        def decode(self, feature_acts: Tensor) -> Tensor:
            return super().decode(feature_acts).unflatten(1, (3, 4))

    sae = random_sae()
    heads = Heads(**{f.name: getattr(sae, f.name) for f in dataclasses.fields(sae)})
    refuse(heads, random_activations(5), "reshaping of heads", ShapeError)


def test_accumulators_go_on_in_another_process_from_their_state() -> None:
    sae, sources, x = random_sae(), make_sources(), random_activations()
    groups = torch.arange(200) % 3
    batches = [
        TokenBatch(x[i : i + 50], torch.arange(i, i + 50) // 10, torch.arange(50), {"dataset": groups[i : i + 50]})
        for i in range(0, 200, 50)
    ]

    def make() -> tuple[LatentScaling, LatentStatistics, TopContexts]:
        return LatentScaling("chat"), LatentStatistics({"dataset": ["a", "b", "c"]}), TopContexts(4)

    whole, first, second = make(), make(), make()
    run_pass(sae, batches, whole, sources)
    run_pass(sae, batches[:2], first, sources)
    decoder, cpu = LinearDecoder.of(sae), torch.device("cpu")
    second[0].load_state_dict(first[0].state_dict(), decoder, sources)
    second[1].load_state_dict(first[1].state_dict(), cpu)
    second[2].load_state_dict(first[2].state_dict(), cpu)
    run_pass(sae, batches[2:], second, sources)
    one, other = whole[0].compute(), second[0].compute()
    assert one.n_tokens == other.n_tokens == 200
    for label, targets in one.beta.items():
        for target, beta in targets.items():
            assert torch.equal(beta, other.beta[label][target])
    for name, tensor in whole[1].state_dict().items():
        assert torch.equal(tensor, second[1].state_dict()[name]), name
    for name, tensor in whole[2].state_dict().items():
        torch.testing.assert_close(tensor, second[2].state_dict()[name], equal_nan=True, rtol=0, atol=0)


def test_an_accumulator_without_batches_has_an_empty_state() -> None:
    decoder, cpu = LinearDecoder.of(random_sae()), torch.device("cpu")
    scaling, statistics, contexts = LatentScaling("chat"), LatentStatistics(), TopContexts()
    assert scaling.state_dict() == statistics.state_dict() == contexts.state_dict() == {}
    scaling.load_state_dict({}, decoder, make_sources())
    statistics.load_state_dict({}, cpu)
    contexts.load_state_dict({}, cpu)
    with pytest.raises(DataError, match="No tokens were added"):
        scaling.compute()
