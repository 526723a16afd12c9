"""The export of an untrained network is tried, and leaves no trace in it."""

from __future__ import annotations

import copy
import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from syncnorm import norm
from syncnorm.trainer.contract.spec import ExportSpec
from syncnorm.trainer.export.exportability import try_export
from syncnorm.trainer.export.forward_inputs import ForwardInputs

X = ForwardInputs((torch.ones(1, 1, 8, 8),))


class Branches(nn.Module):
    """Branches on values, which no graph can do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 10))

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.net(x)
        if h.mean() > 0:
            h = h * 2
        return h


class Contrastive(pl.LightningModule):
    """Trains a projection behind its backbone; its forward gives what the backbone sees."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), norm.build("sync_batch", 8, dims=1))
        self.proj = nn.Sequential(nn.Linear(8, 4), norm.build("sync_batch", 4, dims=1))
        self.probe = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        return self.backbone(x)


class Counts(nn.Module):
    """Changes a buffer and draws random numbers in every forward, also in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.net(x + random.random() + float(np.random.rand()) + torch.rand_like(x))
        return out


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), norm.build("sync_batch", 8, dims=1), nn.Linear(8, 10))


@pytest.mark.parametrize("fold", [True, False])
def test_nothing_is_said_of_a_network_that_torch_export_takes(fold: bool) -> None:
    assert try_export(mlp(), X, ExportSpec(fold=fold)).holds == "yes"


def test_branch_on_values_is_named_with_its_line(capfd: pytest.CaptureFixture[str]) -> None:
    said = try_export(Branches(), X, ExportSpec()).why

    assert "test_exportability.py, line " in said
    assert "if h.mean() > 0:" in said
    assert "\n" not in said
    assert capfd.readouterr() == ("", "")  # torch prints the graph


def test_normalization_outside_of_forward_is_named_and_a_submodule_is_the_cure() -> None:
    said = try_export(Contrastive(), X, ExportSpec()).why

    assert "proj.1 never runs in it. Set export.module" in said
    assert "(backbone)" in said
    assert try_export(Contrastive(), X, ExportSpec(module="backbone")).holds == "yes"


@pytest.mark.parametrize(
    ("module", "sentence"),
    [("backbone.nothing", "has no backbone.nothing"), ("probe", "probe ran 0 times in 1")],
)
def test_submodule_that_cannot_be_exported_is_named(module: str, sentence: str) -> None:
    said = try_export(Contrastive(), X, ExportSpec(module=module))

    assert said.holds == "no"
    assert sentence in said.why


class NoForward(nn.Module):
    """All of it is in its steps, as in many a LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.unused = mlp(), mlp()


def test_part_of_a_network_without_forward_is_exported_by_itself() -> None:
    assert try_export(NoForward(), X, ExportSpec(module="net")).holds == "yes"
    assert "has no nothing. It has net, unused" in try_export(NoForward(), X, ExportSpec(module="nothing")).why


@pytest.mark.parametrize("make", [mlp, Branches, Counts])
def test_network_and_random_generators_are_as_before(make: Any) -> None:
    network = make().train()
    network.get_submodule("1" if isinstance(network, nn.Sequential) else "net").eval()
    before, modes = copy.deepcopy(network.state_dict()), [one.training for one in network.modules()]
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]

    try_export(network, X, ExportSpec())

    assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert [one.training for one in network.modules()] == modes
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert (np.random.get_state()[1] == generators[2]).all()  # type: ignore[index]


class NamesItsBoxes(nn.Module):
    """A detector that torch.export can't take: it looks at values."""

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [{"boxes": image.flatten()[: int(image.sum())]} for image in images]


@pytest.mark.parametrize(("formats", "holds"), [(["pt2", "onnx"], "partly"), (["onnx"], "partly"), (["pt2"], "no")])
def test_detector_that_is_only_traced_is_promised_in_part(formats: Any, holds: str) -> None:
    image = ForwardInputs(([torch.ones(3, 4, 4)],), {})

    promise = try_export(NamesItsBoxes(), image, ExportSpec(formats=formats))

    assert promise.holds == holds
    assert "torch.export says" in promise.why
    assert ("Add onnx to export.formats" in promise.why) == (holds == "no")


class MoleculeBatch:
    """As chemprop's BatchMolGraph: tensors in an object that is no tensor."""

    def __init__(self, atoms: Tensor) -> None:
        self.atoms = atoms


class Molecules(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def forward(self, batch: MoleculeBatch, scale: Tensor | None = None) -> Tensor:
        found: Tensor = self.net(batch.atoms)
        return found if scale is None else found * scale


@pytest.mark.parametrize("formats", [["pt2"], ["onnx"], ["pt2", "onnx"]])
@pytest.mark.parametrize("scale", [None, torch.ones(3, 1)])
def test_network_that_takes_an_object_is_told_so_before_training(formats: list[Any], scale: Tensor | None) -> None:
    """Neither torch.export nor tracing takes one."""
    found = try_export(
        Molecules(), ForwardInputs((MoleculeBatch(torch.ones(3, 4)), scale)), ExportSpec(formats=formats)
    )

    assert found.holds == "no"
    assert "forward gets a MoleculeBatch. Name a part of the network that takes tensors as export.module." in found.why


def test_part_that_takes_tensors_is_exported_all_the_same() -> None:
    spec = ExportSpec(formats=["pt2"], module="net")

    found = try_export(Molecules(), ForwardInputs((MoleculeBatch(torch.ones(3, 4)),)), spec)

    assert found.holds == "yes"
