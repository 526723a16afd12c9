"""What is exported runs every layer that was trained, or a sentence names a part that does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from syncnorm.trainer.errors import NoExportError
from syncnorm.trainer.export.exported_part import find_part
from syncnorm.trainer.export.forward_inputs import ForwardInputs


def normalized() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))


class Networks(nn.Module):
    """Of a GAN, in one module that answers with its generator, as anomalib's Ganomaly has them."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = normalized()
        self.discriminator = nn.Sequential(normalized(), nn.Linear(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        fake: Tensor = self.generator(x)
        return fake


class Gan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Networks()

    def forward(self, x: Tensor) -> Tensor:
        fake: Tensor = self.model(x)
        return fake


INPUTS = [ForwardInputs((torch.zeros(2, 4),))]


@pytest.mark.parametrize("path", [None, "model"])
def test_refusal_names_the_part_whose_layers_all_run(path: str | None) -> None:
    said = r"model.discriminator.0.1 never runs in it. Set export.module .* \(model.generator\)\.$"
    with pytest.raises(NoExportError, match=said):
        find_part(Gan(), INPUTS, path)


def test_the_named_part_is_found() -> None:
    part = find_part(Gan(), INPUTS, "model.generator")

    assert part.path == "model.generator"
    assert len(part.inputs) == 1
