from __future__ import annotations

import pytest

from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.training.latent_layout import LatentLayout
from sae_lens_crosscoder.training.parallel.latent_shard import LatentShard


def test_ranks_hold_equal_runs_in_their_order() -> None:
    shards = [LatentShard.of_rank(12, rank, 3) for rank in range(3)]
    assert [(shard.start, shard.stop, len(shard)) for shard in shards] == [(0, 4, 4), (4, 8, 4), (8, 12, 4)]


def test_a_position_is_the_number_of_its_latents_before_it() -> None:
    shard = LatentShard(4, 8)
    assert [shard.position(latent) for latent in (0, 4, 5, 8, 12)] == [0, 0, 1, 4, 4]


def test_groups_are_cut_where_the_shard_begins_and_ends() -> None:
    sizes = [3, 3, 6]
    assert LatentShard(0, 4).counts(sizes) == [3, 1, 0]
    assert LatentShard(4, 8).counts(sizes) == [0, 2, 2]
    assert LatentShard(8, 12).counts(sizes) == [0, 0, 4]


def test_latents_that_cannot_be_divided_are_refused_with_the_next_number_that_can() -> None:
    with pytest.raises(ConfigError, match=r"d_sae=20 latents cannot be divided equally among 3 processes.*d_sae=21"):
        LatentShard.of_rank(20, 0, 3)


def test_a_part_of_a_layout_may_leave_a_source_to_other_ranks() -> None:
    layout = LatentLayout(8, [4, 4], n_exclusive=[4, 2])
    part = layout.part(LatentShard(0, 4))
    assert (part.n_shared, part.n_exclusive) == (0, [4, 0])
    assert layout.part(LatentShard(4, 8)).n_exclusive == [0, 2]
