"""train.activation_memory: lean. The same training to the last bit, with less to keep."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from syncnorm import norm
from syncnorm.norm.memory.recorder import current
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.errors import SpecError
from syncnorm.trainer.models.activation_memory import keep_memory, save_memory
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.ranks import train
from tests.trainer.training.test_joined_micro_batches import spec


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2, "accumulate_statistics": "exact"}])
def test_a_job_trains_the_same_bits(ranks: Pool, tmp_path: Path, changes: dict[str, Any]) -> None:
    full = spec(2, steps=3, epochs=None, **changes)
    lean = spec(2, steps=3, epochs=None, activation_memory="lean", **changes)

    expected = ranks.run(train, 2, str(tmp_path / "full"), full)[0]
    found = ranks.run(train, 2, str(tmp_path / "lean"), lean)[0]

    assert found.state.keys() == expected.state.keys()
    assert all(torch.equal(found.state[name], value) for name, value in expected.state.items())
    assert found.metrics["train/loss"] == expected.metrics["train/loss"]


class _Own(LightningModule):
    """A module of a user: networks as attributes and in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.body = self._block(3)
        self.heads = nn.ModuleList([self._block(4), self._block(4)])
        self.was_recorded: list[bool] = []
        for network in (self.body, *self.heads):
            network[0].register_forward_hook(lambda *_: self.was_recorded.append(current() is not None))

    def _block(self, c_in: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(c_in, 4, 1), norm.build("sync_batch", 4), nn.ReLU())

    def training_step(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return sum(head(x).sum() for head in self.heads)


def test_networks_of_a_module_of_the_user_are_found_and_left_as_they_were(caplog: pytest.LogCaptureFixture) -> None:
    module, x = _Own(), torch.randn(2, 3, 4, 4)

    with caplog.at_level(logging.INFO):
        save_memory(module)
    module.training_step(x).backward()
    keep_memory(module)
    module.training_step(x).backward()

    assert module.was_recorded == [True] * 3 + [False] * 3
    assert "of 3 normalization layers, 3 keep their input" in caplog.text
    assert not any(network._forward_pre_hooks for network in (module.body, *module.heads))


def test_another_word_is_refused_with_those_there_are() -> None:
    with pytest.raises(SpecError, match=r"activation_memory.*'full' or 'lean'"):
        read_spec(spec(1, activation_memory="slim"))
