"""A job changes of a network what its spec asks for, and says what else it changes."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from syncnorm import norm
from syncnorm.trainer.contract.plan import Inspection
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.training.conversion import convert
from syncnorm.trainer.worker.model_inspection import inspect


def mobile() -> nn.Sequential:
    """Layers as MobileNetV3, EfficientNet and YOLO have them: with arguments of their own."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8, eps=1e-3, momentum=0.01),
        nn.BatchNorm2d(8, affine=False),
        nn.BatchNorm2d(8, momentum=None),
        nn.GroupNorm(2, 8, eps=1e-6),
    )


class Net(pl.LightningModule):
    """Learns digits with any layers behind its first convolution."""

    def __init__(self, layers: str = "mobile", num_classes: int = 10) -> None:
        super().__init__()
        body = mobile() if layers == "mobile" else nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU())
        self.net = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(x)
        return out

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def document(layers: str = "mobile", **parts: Any) -> dict[str, Any]:
    model = {"class_path": f"{__name__}.Net", "init_args": {"layers": layers}}
    return {"name": "own", "model": model, "data": {"name": "digits", "batch_size": 8}, **parts}


def arguments(network: nn.Module) -> list[tuple[Any, ...]]:
    layers = [layer for layer in network if hasattr(layer, "eps")]  # type: ignore[attr-defined]
    return [(layer.eps, getattr(layer, "momentum", "none"), layer.affine) for layer in layers]


def converted(**norm: Any) -> nn.Module:
    network, _ = convert(mobile(), read_spec(document(norm=norm)), None)
    return network


def codes(found: Inspection) -> dict[str, str]:
    return {one.code: f"{one.severity} {one.path}: {one.message} {one.fix}" for one in found.findings}


@pytest.mark.parametrize("kind", ["sync_batch", "batch", "ghost_batch"])
def test_layers_keep_the_arguments_that_their_author_gave_them(kind: str) -> None:
    """eps of 1e-5 in place of 1e-3 would change what trained weights answer."""
    assert arguments(converted(kind=kind)) == [
        (1e-3, 0.01, True),
        (1e-5, 0.1, False),
        (1e-5, None, True),
        (1e-6, 0.1, True),
    ]


def test_what_the_spec_says_holds_for_every_layer() -> None:
    assert arguments(converted(kind="sync_batch", eps=1e-4, momentum=None, affine=True)) == [(1e-4, None, True)] * 4


def test_network_whose_kind_nobody_named_keeps_what_does_not_depend_on_the_batch() -> None:
    left = [type(layer).__name__ for layer in converted().children()]

    assert left == ["Conv2d", "SyncBatchNorm", "SyncBatchNorm", "SyncBatchNorm", "GroupNorm"]


def test_network_that_its_author_converted_stays_so_unless_a_kind_is_named() -> None:
    own, _ = norm.convert(mobile(), "group", num_groups=4)

    kept, _ = convert(own, read_spec(document()), None)
    assert [layer.num_groups for layer in kept if isinstance(layer, nn.GroupNorm)] == [4, 4, 4, 4]

    named, _ = convert(own, read_spec(document(norm={"kind": "sync_batch"})), None)
    assert [type(layer).__name__ for layer in named] == ["Conv2d", *["SyncBatchNorm"] * 4]


@pytest.mark.parametrize(
    ("norm", "replace"),
    [
        ({}, "batch"),
        ({"group": "node"}, "batch"),
        ({"kind": "auto"}, "batch"),
        ({"kind": "sync_batch"}, "all"),
        ({"kind": "group"}, "all"),
        ({"kind": "group", "replace": "batch"}, "batch"),
        ({"replace": "all"}, "all"),
    ],
)
def test_who_names_a_kind_means_all_layers(norm: dict[str, Any], replace: str) -> None:
    spec = read_spec(document(norm=norm))

    assert spec.norm.replace == replace
    assert read_spec(spec.model_dump(mode="json")).norm == spec.norm  # as it is stored


def test_spec_of_an_earlier_version_means_what_it_meant() -> None:
    """It was stored with every default of its day."""
    stored = {"kind": "sync_batch", "group": "world", "eps": 1e-5, "momentum": 0.1, "affine": True}

    assert arguments(converted(**stored)) == [(1e-5, 0.1, True)] * 4


def test_plan_warns_of_a_network_that_mixes_normalizations() -> None:
    found = codes(inspect(read_spec(document(norm={"kind": "sync_batch"}))))

    assert found["mixed_normalizations"] == (
        "warning norm.replace: The network mixes 3 batch layers with 1 group layer, and all become sync_batch. "
        "Set norm.replace to batch if the others should stay as you wrote them."
    )
    assert "nothing_exchanged" not in found


@pytest.mark.parametrize("norm", [{}, {"kind": "sync_batch", "replace": "batch"}])
def test_plan_of_a_network_that_keeps_its_others_has_no_such_warning(norm: dict[str, Any]) -> None:
    assert "mixed_normalizations" not in codes(inspect(read_spec(document(norm=norm))))


def test_plan_says_that_nothing_is_exchanged() -> None:
    found = codes(inspect(read_spec(document("group"))))

    assert found["nothing_exchanged"].startswith(
        "info norm.kind: The network has no normalization over the batch, so it stays as you wrote it."
    )
