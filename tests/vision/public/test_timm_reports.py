"""Reports about timm's networks and averaged weights, with the real ones."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from syncnorm import norm
from tests.helpers.norm.models import trained


def efficientnet() -> Any:
    import timm

    torch.manual_seed(1)
    return trained(timm.create_model("test_efficientnet", pretrained=False, num_classes=4)).double()


# https://github.com/huggingface/pytorch-image-models/issues/1254
def test_timm_1254_efficientnet_keeps_its_activations() -> None:
    model, x = efficientnet().eval(), torch.rand(2, 3, 64, 64, dtype=torch.float64)
    expected = model(x)
    lost = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).eval()
    assert (lost(x) - expected).abs().max() > 0.1  # the report

    converted, report = norm.convert(model, "sync_batch")

    assert len(report) > 10
    torch.testing.assert_close(converted.eval()(x), expected, rtol=1e-9, atol=1e-9)


# https://github.com/huggingface/pytorch-image-models/issues/2422
def test_timm_2422_layers_of_the_backbone_stay_in_eval_mode() -> None:
    model = efficientnet().train()
    model.bn1.eval()

    converted, _ = norm.convert(model, "sync_batch")

    flags = {name: layer.training for name, layer in converted.named_modules() if isinstance(layer, norm.SyncBatchNorm)}
    inside = {name for name in flags if name.startswith("bn1")}
    assert inside
    assert all(flags[name] is (name not in inside) for name in flags)


# https://github.com/huggingface/pytorch-image-models/issues/1119
@pytest.mark.parametrize("converted_first", [True, False])
def test_timm_1119_averaged_copy_may_be_made_before_or_after_the_conversion(converted_first: bool) -> None:
    from timm.utils import ModelEmaV3

    model = efficientnet()
    if converted_first:
        model, _ = norm.convert(model, "sync_batch")
    ema = ModelEmaV3(model, decay=0.75)
    if not converted_first:
        model, _ = norm.convert(model, "sync_batch")
    before = {name: tensor.clone() for name, tensor in ema.module.state_dict().items()}

    model.train()(torch.rand(4, 3, 64, 64, dtype=torch.float64))
    ema.update(model)

    now, averaged = model.state_dict(), ema.module.state_dict()
    assert now.keys() == averaged.keys()
    name = next(name for name in now if name.endswith("running_mean"))
    torch.testing.assert_close(averaged[name], 0.75 * before[name] + 0.25 * now[name], rtol=1e-10, atol=1e-12)


# https://github.com/huggingface/pytorch-image-models/issues/224
def test_timm_224_averaged_checkpoints_get_the_statistics_of_a_pass() -> None:
    first, second = efficientnet(), efficientnet()
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.mul_(1.5)
    average = efficientnet()
    states = first.state_dict(), second.state_dict()
    average.load_state_dict({k: (a + states[1][k]) / 2 if a.is_floating_point() else a for k, a in states[0].items()})
    batches = torch.rand(12, 3, 64, 64, dtype=torch.float64).split([5, 7])

    norm.recompute_population_statistics(average, batches)

    hidden = average.conv_stem(torch.cat(batches)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(average.bn1.running_mean, hidden.mean(1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(average.bn1.running_var, hidden.var(1), rtol=1e-10, atol=1e-10)
