from __future__ import annotations

import pytest
import torch

from sae_lens_crosscoder.fingerprint import fingerprint
from sae_lens_crosscoder.inline import inline_json, policy_hash


def test_a_fingerprint_changes_with_the_description_and_any_bit_of_a_tensor() -> None:
    weights = torch.zeros(2, 3, dtype=torch.bfloat16)
    first = fingerprint({"a": 1, "b": 2}, [weights])
    assert fingerprint({"b": 2, "a": 1}, [weights.clone()]) == first
    assert fingerprint({"a": 1, "b": 3}, [weights]) != first
    weights[1, 2] = -0.0
    assert fingerprint({"a": 1, "b": 2}, [weights]) != first


def test_data_inside_a_page_cannot_end_their_element() -> None:
    assert inline_json(["</script>", "é"]) == '["\\u003c/script>","\\u00e9"]'
    with pytest.raises(ValueError, match="not JSON compliant"):
        inline_json(float("nan"))


def test_a_policy_names_a_script_by_its_sha256() -> None:
    # The digest of the empty string, as published with SHA-256.
    assert policy_hash("") == "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
