"""Reports about segmentation-models-pytorch: exchanging its normalization, with the real networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from syncnorm import norm


def unet() -> Any:
    import segmentation_models_pytorch as smp

    torch.manual_seed(1)
    return smp.Unet("efficientnet-b0", encoder_weights=None, in_channels=3, classes=2)


# https://github.com/qubvel-org/segmentation_models.pytorch/issues/488
def test_smp_488_batch_norm_of_encoder_and_decoder_becomes_group_norm() -> None:
    model = unet()
    number = sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    with pytest.raises(ValueError, match="num_groups must divide"):
        norm.convert(model, "group", num_groups=32)  # 32, as in the report, does not divide 24 channels

    converted, report = norm.convert(model, "group", num_groups="auto")

    assert len(report) == number > 50
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in converted.modules())
    groups = [layer for layer in converted.modules() if isinstance(layer, nn.GroupNorm)]
    assert all(layer.num_channels % layer.num_groups == 0 for layer in groups)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    converted.double().eval()
    together, alone = converted(x), torch.cat([converted(x[:1]), converted(x[1:])])
    torch.testing.assert_close(together, alone, rtol=1e-8, atol=1e-10)  # no sample depends on another


# https://github.com/qubvel-org/segmentation_models.pytorch/pull/1095
def test_smp_1095_encoder_and_decoder_may_have_kinds_of_their_own() -> None:
    converted, report = norm.convert(unet(), "sync_batch", overrides=[{"match": "encoder.*", "kind": "frozen_batch"}])

    became = {(each.path.split(".")[0], each.after) for each in report}
    assert became == {("encoder", "FrozenBatchNorm"), ("decoder", "SyncBatchNorm")}
    before = {name: tensor.clone() for name, tensor in converted.named_buffers() if "running" in name}
    converted.train()(torch.randn(2, 3, 64, 64))
    moved = {name.split(".")[0] for name, was in before.items() if not torch.equal(converted.get_buffer(name), was)}
    assert moved == {"decoder"}
