"""A network that does not fit its data fails before anything is trained, with the layer that does not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from syncnorm import norm
from syncnorm.trainer.data import DataInfo
from syncnorm.trainer.worker.smoke_forward import check_forward

INFO = DataInfo("classification", 3, (1, 4, 4))


def net(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(16, 8), *layers), nn.Linear(8, 3))


def test_a_network_that_fits_is_left_as_it_was() -> None:
    network = net(nn.BatchNorm1d(8), nn.Dropout())
    network[1].eval()
    modes = [module.training for module in network.modules()]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()

    check_forward(network, INFO)

    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in network.modules())


def test_the_layer_that_does_not_fit_is_named_with_what_it_got() -> None:
    wanted = r"shape \(1, 4, 4\), but layer 1\.1 \(Linear\) can't take \(2, 8\): mat1 and mat2.*Change the model"

    with pytest.raises(ValueError, match=wanted):
        check_forward(net(nn.Linear(9, 8)), INFO)


def test_instance_normalization_of_one_position_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"layer 1\.1 \(InstanceNorm\) can't take \(2, 8\): Instance normalization needs"
    ):
        check_forward(net(norm.build("instance", 8, dims=1)), INFO)


def test_outputs_that_are_no_scores_of_the_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"class scores of shape \(2, 5\), got \(2, 3\). The data has 5 classes"):
        check_forward(net(), DataInfo("classification", 5, (1, 4, 4)))


def test_the_users_own_error_is_passed_on() -> None:
    class Own(nn.Module):
        def forward(self, _: torch.Tensor) -> torch.Tensor:
            raise KeyError("wavelets")

    with pytest.raises(KeyError, match="wavelets"):
        check_forward(Own(), INFO)
