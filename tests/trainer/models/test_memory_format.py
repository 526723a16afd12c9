"""train.memory_format: channels_last. The same training up to rounding, and the network left as it is written."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from syncnorm import norm
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.errors import SpecError
from syncnorm.trainer.models.memory_format import use_channels_last, use_contiguous
from syncnorm.trainer.worker.model_inspection import inspect
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.ranks import train
from tests.trainer.training.test_joined_micro_batches import spec


@pytest.mark.parametrize("kind", ["sync_batch", "group", "instance"])
def test_a_job_trains_what_it_trains_contiguously(ranks: Pool, tmp_path: Path, kind: str) -> None:
    document = spec(2, steps=3, epochs=None) | {"norm": {"kind": kind}}
    other = document | {"train": document["train"] | {"memory_format": "channels_last"}}

    expected = ranks.run(train, 2, str(tmp_path / "contiguous"), document)[0]
    found = ranks.run(train, 2, str(tmp_path / "channels_last"), other)[0]

    for name, tensor in expected.state.items():  # fp64
        torch.testing.assert_close(found.state[name], tensor, rtol=1e-9, atol=1e-9)
    assert any(not tensor.is_contiguous() for tensor in found.state.values())
    assert found.metrics["val/accuracy"] == expected.metrics["val/accuracy"]


def is_channels_last(x: Tensor) -> bool:
    kept = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return x.is_contiguous(memory_format=kept)


@pytest.mark.parametrize("dims", [2, 3])
def test_every_activation_of_a_network_is_channels_last_and_the_numbers_stay(dims: int) -> None:
    convolution = nn.Conv2d if dims == 2 else nn.Conv3d
    plain = nn.Sequential(convolution(3, 8, 3), norm.build("group", 8), nn.ReLU(), convolution(8, 4, 3))
    network, x = copy.deepcopy(plain), torch.randn(2, 3, *[6] * dims)
    formats: list[bool] = []
    for layer in network:
        layer.register_forward_hook(lambda _, args, y: formats.extend([is_channels_last(args[0]), is_channels_last(y)]))

    use_channels_last(network)
    y = network(x)

    assert formats == [True] * 8
    torch.testing.assert_close(y, plain(x))


class _Own(LightningModule):
    """A module of a user, which calls the networks in it by name and by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.heads = nn.ModuleList([nn.Conv2d(4, 2, 1), nn.Linear(4, 2)])
        self.formats: list[bool] = []
        self.body[0].register_forward_hook(lambda _, args, __: self.formats.append(is_channels_last(args[0])))

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        y = self.body(input=batch["image"])
        return self.heads[0](input=y).sum() + self.heads[1](y.mean((2, 3))).sum()


def test_networks_of_a_module_of_the_user_get_channels_last_inputs(caplog: pytest.LogCaptureFixture) -> None:
    module, batch = _Own(), {"image": torch.randn(2, 3, 6, 6), "name": ["a", "b"]}

    with caplog.at_level(logging.INFO):
        use_channels_last(module)
        use_channels_last(module)  # as an attempt does that prepares its module twice
    module.training_step(batch)

    assert module.formats == [True]
    assert "memory format is channels_last: 2 weights, and the inputs of 2 networks" in caplog.text


def test_export_gets_the_network_as_it_is_written() -> None:
    module = _Own()
    use_channels_last(module)

    use_contiguous(module)
    module.training_step({"image": torch.randn(2, 3, 6, 6)})

    assert module.formats == [False]
    assert all(weight.is_contiguous() for weight in module.parameters())
    assert not any(part._forward_pre_hooks for part in module.modules())


def test_a_contiguous_network_is_left_alone() -> None:
    network = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)

    use_contiguous(network)

    assert is_channels_last(network.weight)


def _warnings(document: dict[str, Any]) -> list[str]:
    return [finding.code for finding in inspect(read_spec(document)).findings if finding.path == "train.memory_format"]


def test_a_network_without_maps_is_told_that_nothing_changes() -> None:
    document = spec(1, memory_format="channels_last") | {"model": {"name": "mlp"}}

    assert _warnings(document) == ["memory_format_without_effect"]
    assert _warnings(spec(1, memory_format="channels_last")) == []


def test_another_word_is_refused_with_those_there_are() -> None:
    with pytest.raises(SpecError, match=r"memory_format.*'contiguous' or 'channels_last'"):
        read_spec(spec(1, memory_format="nhwc"))
