"""What rounding alone does to the outputs of a network is allowed to those of its exported model, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from syncnorm.trainer.contract.spec import ExportSpec
from syncnorm.trainer.export import certificate, certification
from syncnorm.trainer.export.certification import Comparison, TrainedModel, export_and_compare, mismatch
from syncnorm.trainer.export.forward_inputs import ForwardInputs

pytestmark = pytest.mark.filterwarnings("ignore")  # exporters warn about their own internals


def samples(offset: float) -> Tensor:
    """As of a CT in Hounsfield units, or of temperatures in Kelvin: far from zero, with a small spread."""
    return offset + torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def network(offset: float) -> nn.Sequential:
    """The statistics of its normalization are as far from zero, so that each output is a small rest of large terms."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU(), nn.Conv2d(8, 2, 3))
    net(samples(offset))
    return net.eval()


def compared(net: nn.Module, offset: float, folder: Path, formats: Any = ("pt2", "onnx")) -> Comparison:
    held_out = [ForwardInputs((samples(offset),))]
    return export_and_compare(
        TrainedModel("j", net, held_out, {}, {}, seed=0), ExportSpec(formats=list(formats)), folder
    )


def test_ill_conditioned_network_is_certified_to_within_its_own_rounding(tmp_path: Path) -> None:
    found = compared(network(2000), 2000, tmp_path)

    worst = max(check.max_rel or 0.0 for check in found.checks)
    assert found.rounding is not None
    assert certificate.MAX_RELATIVE_DIFFERENCE < worst <= certificate.allowed(found.rounding)
    assert certificate.passed(found.checks)
    proof = certificate.document(job_id="j", checks=found.checks, files={}, facts={}, rounding=found.rounding)
    assert proof["tolerance"]["max_relative_difference"] == certificate.allowed(found.rounding)
    assert proof["tolerance"]["rounding"] == found.rounding


def test_network_like_others_is_held_to_what_others_are(tmp_path: Path) -> None:
    found = compared(network(0), 0, tmp_path)

    assert certificate.passed(found.checks)
    assert found.rounding is None  # nobody had to measure it
    assert certificate.allowed(None) == 1e-4


def test_wrong_statistic_does_not_pass_for_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damage(net: nn.Module, fold: bool) -> tuple[nn.Module, list[Any]]:
        wrong = network(2000)
        with torch.no_grad():
            wrong[1].running_var *= 1.01
        return wrong, []

    monkeypatch.setattr(certification, "inference_network", damage)

    found = compared(network(2000), 2000, tmp_path, formats=[])

    assert not certificate.passed(found.checks)
    assert "Rounding alone moves its outputs by 0.000" in mismatch(found.checks, found.rounding)


def test_who_asks_too_much_of_fp32_is_told_so(tmp_path: Path) -> None:
    found = compared(network(20000), 20000, tmp_path, formats=["pt2"])

    assert not certificate.passed(found.checks)
    assert "Rounding alone moves its outputs by 0.00" in mismatch(found.checks, found.rounding)
    assert mismatch(found.checks, found.rounding).endswith("a mean near 0 and a spread near 1 make that less.")


def test_network_that_only_runs_in_fp32_is_held_to_what_others_are(tmp_path: Path) -> None:
    class Only32(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(2000)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x.float())
            return out

    found = compared(Only32(), 2000, tmp_path, formats=[])

    assert found.rounding is None
    assert "allowed is 0.0001." in mismatch(found.checks, found.rounding)


@pytest.mark.parametrize(("rounding", "most"), [(1e-7, 1e-4), (1e-4, 4e-4), (0.1, 1e-3), (None, 1e-4)])
def test_at_most_a_thousandth_is_allowed(rounding: float | None, most: float) -> None:
    assert certificate.allowed(rounding) == pytest.approx(most)


def test_classes_that_flip_are_no_rounding() -> None:
    trained = {"score": np.ones((4, 2), np.float32), "class": np.zeros(4, np.int64)}
    exact = {"score": np.full((4, 2), 1.00002, np.float32), "class": np.ones(4, np.int64)}

    assert certificate.rounding([(trained, exact)]) == pytest.approx(2e-5, rel=0.01)


def test_rounding_of_what_is_not_finite_is_not_known() -> None:
    finite, infinite = {"": np.ones((2, 2), np.float32)}, {"": np.full((2, 2), np.inf, np.float32)}

    assert certificate.rounding([(finite, finite), (finite, infinite)]) is None
