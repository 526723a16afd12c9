"""The weights file of any network loads into plain torch under the network's own keys."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close

from syncnorm.trainer.export.weights import DESCRIPTION_FILE, WEIGHTS_FILE, write_weights
from syncnorm.trainer.storage.atomic_files import sha256_of


class Tied(nn.Module):
    """Two layers with one weight, a transposed view, a view of half a tensor, and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.turned = nn.Parameter(torch.randn(3, 5).t())
        self.register_buffer("part", torch.arange(8.0)[4:])
        self.register_buffer("count", torch.tensor(3))
        self.picture = nn.Parameter(torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last))


class Extra(nn.Module):
    """Keeps words beside its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def get_extra_state(self) -> Any:
        return {"vocabulary": ["a", "b"]}

    def set_extra_state(self, state: Any) -> None: ...


def test_shared_and_strided_tensors_load_into_the_same_network(tmp_path: Path) -> None:
    network, fresh = Tied(), Tied()

    write_weights(network, {}, tmp_path)

    loaded = load_file(tmp_path / WEIGHTS_FILE)
    fresh.load_state_dict(loaded)
    assert list(loaded.keys() ^ network.state_dict().keys()) == []
    assert_close(dict(fresh.state_dict()), dict(network.state_dict()), rtol=0, atol=0)
    assert fresh.two.weight is fresh.one.weight


def test_tensors_of_a_subclass_are_written_as_tensors(tmp_path: Path) -> None:
    class Meta(Tensor):
        """As MONAI's and fastai's tensors carry facts."""

    network = nn.Module()
    network.register_buffer("image", torch.randn(2, 3).as_subclass(Meta))

    write_weights(network, {}, tmp_path)

    assert torch.equal(load_file(tmp_path / WEIGHTS_FILE)["image"], network.image.as_subclass(Tensor))


def test_what_is_no_tensor_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        write_weights(nn.Sequential(Extra()), {"job_id": "j"}, tmp_path)

    about = json.loads((tmp_path / DESCRIPTION_FILE).read_text())
    assert sorted(load_file(tmp_path / WEIGHTS_FILE)) == ["0.layer.bias", "0.layer.weight"]
    assert about["weights"] == {"left_out": ["0._extra_state"], "sha256": sha256_of(tmp_path / WEIGHTS_FILE)}
    assert "0._extra_state" in caplog.text
    assert about["job_id"] == "j"
