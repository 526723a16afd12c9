"""Reports about torchvision's frozen layers and networks, with the real ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from syncnorm import norm
from tests.helpers.norm.models import trained

EXACT = {"rtol": 1e-10, "atol": 1e-10}
"""float64: the same formula."""


# https://github.com/pytorch/vision/issues/2169
# https://github.com/pytorch/pytorch/issues/43614
@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_torchvision_2169_frozen_layer_keeps_the_eps_of_its_source(eps: float) -> None:
    from torchvision.ops.misc import FrozenBatchNorm2d

    plain, x = trained(nn.BatchNorm2d(16)).double().eval(), torch.rand(1, 16, 8, 8, dtype=torch.float64)
    theirs = nn.Sequential(FrozenBatchNorm2d(16, eps=eps)).double()
    theirs[0].load_state_dict(plain.state_dict())
    expected = theirs(x)

    ours, _ = norm.convert(nn.Sequential(copy.deepcopy(plain)), "frozen_batch")
    thawed, _ = norm.convert(theirs, "sync_batch")

    torch.testing.assert_close(ours(x), plain(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(thawed.eval()(x), expected, **EXACT)
    assert thawed[0].eps == eps


# https://github.com/pytorch/vision/pull/1728
def test_torchvision_1728_states_with_and_without_a_counter_load_both_ways() -> None:
    from torchvision.models import resnet18
    from torchvision.ops.misc import FrozenBatchNorm2d

    plain = trained(resnet18(weights=None))
    theirs = resnet18(weights=None, norm_layer=FrozenBatchNorm2d)
    theirs.load_state_dict(plain.state_dict())
    assert not any("num_batches_tracked" in name for name in theirs.state_dict())

    ours, _ = norm.convert(resnet18(weights=None), "frozen_batch")
    for state in (plain.state_dict(), theirs.state_dict()):
        ours.load_state_dict(state)
        torch.testing.assert_close(ours.state_dict()["layer2.0.bn1.running_var"], state["layer2.0.bn1.running_var"])
    sync, _ = norm.convert(resnet18(weights=None), "sync_batch")
    sync.load_state_dict(theirs.state_dict())

    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(sync.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-4)  # fp32, 20 layers


# https://github.com/pytorch/vision/issues/1072
def test_torchvision_1072_resnet_with_group_norm() -> None:
    from torchvision.models import resnet18

    with pytest.raises(TypeError):
        resnet18(weights=None, norm_layer=nn.GroupNorm)  # the report: its first argument is the number of groups
    torch.manual_seed(1)
    theirs = resnet18(weights=None, norm_layer=lambda channels: nn.GroupNorm(32, channels)).double()

    ours, report = norm.convert(resnet18(weights=None).double(), "group", num_groups=32)

    assert len(report) == 20
    assert ours.load_state_dict(theirs.state_dict()) is not None
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-8, atol=1e-8)
