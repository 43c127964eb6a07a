"""What is folded into the saved weights is undone: by hand, and for every architecture."""

from __future__ import annotations

import torch
from architectures import activations, every_architecture, every_layout, make, step

SCALES = [0.25, 3.0, 0.7]


def test_unfolding_by_hand() -> None:
    # Canonical weights of one latent in use, with n = 4 and g = (2, 1/2) taken out again.
    sae = make("standard", [1, 2], dtype="float32")
    ones = torch.ones(20)
    saved = {
        "W_enc": torch.tensor([[24.0], [2.0], [4.0]]) * ones,
        "W_dec": torch.tensor([[0.125, 1.0, 2.0]]) * ones[:, None],
        "b_enc": 12.0 * ones,
        "b_dec": torch.tensor([1.0, 4.0, 6.0]),
    }
    sae.load_inference_state_dict(saved, {"canonical_norms": 4.0 * ones}, [2.0, 0.5])
    # W_enc / n / g, W_dec * n * g, b_enc / n, b_dec * g.
    assert sae.W_enc[:, 0].tolist() == [3.0, 1.0, 2.0]
    assert sae.W_dec[0].tolist() == [1.0, 2.0, 4.0]
    assert sae.b_enc[0].item() == 3.0
    assert sae.b_dec.tolist() == [2.0, 2.0, 3.0]
    assert sae.source_scales.tolist() == [1.0, 1.0]


@every_architecture
@every_layout
def test_unfolding_is_the_inverse_of_folding_and_saving(name: str, widths: list[int]) -> None:
    sae, scales = make(name, widths), SCALES[: len(widths)]
    step(sae, activations(widths))  # BatchTopK measures its threshold
    before = {key: tensor.clone() for key, tensor in sae.state_dict().items()}
    sae.fold_activation_norm_scaling_factor(scales)
    saved = sae.state_dict()
    sae.process_state_dict_for_saving_inference(saved)
    again = make(name, widths, seed=1)
    again.load_inference_state_dict(saved, sae.left_out_of_inference(), scales)
    after = again.state_dict()
    assert after.keys() == before.keys()
    for key, tensor in before.items():
        assert after[key].dtype == tensor.dtype
        torch.testing.assert_close(after[key], tensor, rtol=1e-12, atol=1e-12, msg=key)


def test_rows_of_shared_latents_are_one_again() -> None:
    # Rows that were equal in training come back equal to the last bit, or training would tear them apart.
    sae = make("topk", [8, 8], n_shared_latents=4)
    sae.fold_activation_norm_scaling_factor([0.3, 1.7])
    saved = sae.state_dict()
    sae.process_state_dict_for_saving_inference(saved)
    saved = {key: tensor.float() for key, tensor in saved.items()}
    again = make("topk", [8, 8], seed=1, n_shared_latents=4)
    again.load_inference_state_dict(saved, sae.left_out_of_inference(), [0.3, 1.7])
    assert torch.equal(again.W_dec[:4, :8], again.W_dec[:4, 8:])
    torch.testing.assert_close(again.W_dec, sae.W_dec * torch.tensor([0.3, 1.7]).repeat_interleave(8).double())
