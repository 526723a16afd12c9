"""Ranks that drifted apart are found before they are saved."""

from __future__ import annotations

import pytest
from torch import nn

from syncnorm import norm
from syncnorm.trainer.contract.failure import FailureReason, advised
from syncnorm.trainer.errors import DisagreementError
from syncnorm.trainer.ranks.replica_check import check_agreement
from tests.helpers.norm.pool import Pool


def disagree(rank: int, world_size: int, kind: str, name: str) -> object:
    network = nn.Sequential(nn.Linear(4, 8, bias=False), norm.build(kind, 8, dims=1))
    for parameter in network.parameters():
        nn.init.ones_(parameter)
    if rank == 1:
        network.state_dict()[name].view(-1)[3] += 1e-7 if "running" in name else 0.5
    return check_agreement(network)


@pytest.mark.parametrize("name", ["0.weight", "1.running_mean"])
def test_the_tensor_and_the_rank_are_named_on_every_rank(ranks: Pool, name: str) -> None:
    outcomes = ranks.outcomes(disagree, 2, "sync_batch", name)

    for _, error, _ in outcomes:
        assert isinstance(error, DisagreementError)
        assert f"every rank must hold the same {name}, but that of rank 1 differs" in str(error)
        assert "Internal error of the service" not in advised(str(error), FailureReason.INTERNAL)


def test_running_statistics_of_a_layer_that_does_not_synchronize_may_differ(ranks: Pool) -> None:
    first, second = ranks.run(disagree, 2, "batch", "1.running_mean")

    assert first == second
    assert first["ranks"] == 2
