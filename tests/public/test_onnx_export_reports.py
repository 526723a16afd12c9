"""Reports about normalization in ONNX files: ONNX Runtime must answer what the network answers in eval mode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from syncnorm import norm
from syncnorm.trainer.export.formats import ONNX_FILE, export
from syncnorm.trainer.export.forward_inputs import ForwardInputs
from tests.helpers.norm.models import trained


def assert_onnx_answers_as(network: nn.Module, x: Tensor, folder: Path) -> onnx.ModelProto:
    """The ONNX file, once ONNX Runtime has answered two batches, the second of another size, as the network does."""
    with torch.no_grad():
        expected = {len(batch): network.eval()(batch) for batch in (x, x[:1])}

    (exported,) = export(network, ForwardInputs((x,)), ["onnx"], folder)

    for batch in (x, x[:1]):
        (found,) = exported.run(ForwardInputs((batch,))).values()
        np.testing.assert_allclose(found, expected[len(batch)].numpy(), rtol=1e-4, atol=1e-5)  # fp32
    return onnx.load(folder / ONNX_FILE)


def modes(model: onnx.ModelProto) -> list[int]:
    """training_mode of each BatchNormalization."""
    layers = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    return [sum(a.i for a in node.attribute if a.name == "training_mode") for node in layers]


# https://github.com/pytorch/pytorch/issues/75252
def test_pytorch_75252_layer_without_running_statistics_has_one_output(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU())

    model = assert_onnx_answers_as(norm.convert(network, "sync_batch")[0], torch.randn(3, 3, 8, 8) * 3 + 1, tmp_path)

    assert len(model.graph.output) == 1


# https://github.com/pytorch/pytorch/issues/53887
def test_pytorch_53887_instance_norm_with_running_statistics_uses_them(tmp_path: Path) -> None:
    layer = nn.InstanceNorm2d(2, affine=False, track_running_stats=True)
    layer.train()(torch.randn(8, 2, 5, 5) * 3 + 2)
    x = torch.randn(2, 2, 1, 4)
    own = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    assert not torch.allclose(layer.eval()(x), own, atol=0.1)  # the report: the file normalizes each picture by itself

    assert_onnx_answers_as(nn.Sequential(layer), x, tmp_path)


# https://github.com/pytorch/pytorch/issues/94604
def test_pytorch_94604_instance_norm_is_not_exported_for_training(tmp_path: Path) -> None:
    network = norm.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "instance")[0]

    model = assert_onnx_answers_as(network, torch.randn(3, 3, 8, 8), tmp_path)

    assert not any(modes(model))


# https://github.com/pytorch/pytorch/issues/49229
def test_pytorch_49229_frozen_layers_of_a_network_in_training_mode(tmp_path: Path) -> None:
    network = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    frozen = norm.convert(network, "frozen_batch")[0].train()

    model = assert_onnx_answers_as(frozen, torch.randn(3, 3, 8, 8), tmp_path)

    assert not any(modes(model))


class _UNet(nn.Module):
    """Two scales of nnU-Net's blocks: convolution, instance normalization, leaky ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.deep = self._block(1, 4), self._block(4, 8)
        self.up, self.head = nn.ConvTranspose3d(8, 4, 2, 2), nn.Conv3d(8, 2, 1)

    @staticmethod
    def _block(c_in: int, c_out: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv3d(c_in, c_out, 3, padding=1), nn.InstanceNorm3d(c_out, affine=True), nn.LeakyReLU(inplace=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        skip: Tensor = self.first(x)
        up = self.up(self.deep(nn.functional.max_pool3d(skip, 2)))
        return self.head(torch.cat([skip, up], 1))


# https://github.com/MIC-DKFZ/nnUNet/issues/2040
@pytest.mark.parametrize("kind", [None, "instance"])
def test_nnunet_2040_file_has_the_output_of_the_network_alone(kind: str | None, tmp_path: Path) -> None:
    network: nn.Module = _UNet() if kind is None else norm.convert(_UNet(), kind)[0]

    model = assert_onnx_answers_as(network, torch.randn(2, 1, 8, 8, 8), tmp_path)

    assert len(model.graph.output) == 1
    assert not any(modes(model))
