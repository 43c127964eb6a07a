"""The check that models can read the token ids of the data."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor

from sae_lens_crosscoder.errors import DataError
from sae_lens_crosscoder.hooked_models import n_token_ids
from sae_lens_crosscoder.joint_model import JointModel


def check_token_ids(tokens: Int[Tensor, "batch pos"], joint: JointModel) -> None:
    """Refuse ids that an embedding does not have: on CUDA, a look-up of one ends the process without a word.

    Args:
        tokens: Ids, on the CPU. Packed rows of models that read tokens of their own are passed over: they are made of
            text by the models' own tokenizers.
        joint: The models; those that do not say how many ids they read are passed over.

    Raises:
        DataError: An id that a model does not have.
    """
    known = [n for model in joint.source_models if (n := n_token_ids(model)) is not None]
    if joint.aligner is not None or not known:
        return
    least, most = (int(bound) for bound in tokens.aminmax())
    if least < 0 or most >= min(known):
        raise DataError(
            f"The data hold token ids from {least} to {most}, the models read 0 to {min(known) - 1}: the data were "
            "tokenized for other models. Tokenize them with the tokenizer of these, or give them as text."
        )
