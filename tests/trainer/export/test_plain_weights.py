"""Beside the weights of every kind: a file for the built-in network without a conversion, or why there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from syncnorm import norm
from syncnorm.trainer.contract.spec import JobSpec, ModelSpec, NormSpec
from syncnorm.trainer.data import DataInfo
from syncnorm.trainer.export.weights import DESCRIPTION_FILE, PLAIN_FILE, WEIGHTS_FILE, write_weights
from syncnorm.trainer.models import build_model
from syncnorm.trainer.storage.atomic_files import sha256_of
from syncnorm.trainer.training.conversion import convert
from syncnorm.trainer.worker.model_description import describe_job
from tests.helpers.norm.models import trained
from tests.helpers.norm.splits import relative_error
from tests.norm.conversion.test_plain_state import PLAIN
from tests.trainer.models.test_models_with_kinds import MODELS, OPTIONS, REFUSED

PAIRS = [(name, kind) for name in MODELS for kind in norm.kinds() if (name, kind) not in REFUSED]
# The transposed convolution between two levels has no normalization behind it that could take the bias it got.
NOT_PLAIN = {("unet-3d", "weight")}


def _network(name: str, spec: NormSpec) -> nn.Module:
    init_args, shape = MODELS[name]
    info = DataInfo("segmentation" if name.startswith("unet") else "classification", 3, shape)
    return build_model(ModelSpec(name=name.split("-", maxsplit=1)[0], init_args=init_args), spec, info)


def _spec(kind: str) -> JobSpec:
    document = {
        "name": "j",
        "model": {"name": "resnet"},
        "data": {"name": "digits", "batch_size": 8},
        "norm": {"kind": kind, "eps": 1e-4, "options": OPTIONS.get(kind, {})},
    }
    return JobSpec.model_validate(document)


def _written(name: str, kind: str, folder: Path) -> tuple[nn.Module, nn.Module]:
    """The network without a conversion, and the converted one whose weights are in `folder`."""
    torch.manual_seed(0)
    spec = _spec(kind)
    plain = _network(name, spec.norm)
    converted, _ = convert(trained(_network(name, spec.norm)), spec, None)
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    write_weights(converted.eval(), describe_job("j", spec), folder)
    return plain.eval(), converted


@pytest.mark.parametrize(("name", "kind"), [pair for pair in PAIRS if pair[1] in PLAIN and pair not in NOT_PLAIN])
def test_plain_file_loads_strictly_into_the_built_in_network(name: str, kind: str, tmp_path: Path) -> None:
    plain, converted = _written(name, kind, tmp_path)
    x = torch.randn(4, *MODELS[name][1])

    plain.load_state_dict(load_file(tmp_path / PLAIN_FILE))

    about = json.loads((tmp_path / DESCRIPTION_FILE).read_text())["plain"]
    assert about == {"file": PLAIN_FILE, "sha256": sha256_of(tmp_path / PLAIN_FILE)}
    assert relative_error(plain(x).detach(), converted(x).detach()) < 1e-4  # fp32


@pytest.mark.parametrize(("name", "kind"), [pair for pair in PAIRS if pair[1] not in PLAIN or pair in NOT_PLAIN])
def test_other_kinds_say_why_there_is_no_plain_file(name: str, kind: str, tmp_path: Path) -> None:
    _written(name, kind, tmp_path)

    assert not (tmp_path / PLAIN_FILE).exists()
    about = json.loads((tmp_path / DESCRIPTION_FILE).read_text())
    assert "must compute what its original class can" in about["plain"]["reason"]
    assert about["weights"]["sha256"] == sha256_of(tmp_path / WEIGHTS_FILE)


def test_network_that_breaks_the_plain_form_is_published_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_model: nn.Module) -> None:
        raise RuntimeError("no such tensor")

    monkeypatch.setattr("syncnorm.norm.plain_state_dict", broken, raising=False)

    write_weights(nn.Linear(2, 2), {}, tmp_path)

    assert json.loads((tmp_path / DESCRIPTION_FILE).read_text())["plain"] == {"reason": "no such tensor"}
    assert sorted(load_file(tmp_path / WEIGHTS_FILE)) == ["bias", "weight"]


def test_description_names_the_package_and_what_was_installed() -> None:
    document = _spec("batch").model_dump(mode="json") | {
        "model": {"class_path": "torchmetrics.Accuracy"},
        "code": {"package": f"sha256:{'0' * 64}"},
    }

    about = describe_job("j", JobSpec.model_validate(document))

    assert about["code"]["package"] == f"sha256:{'0' * 64}"
    assert {"python", "torch", "safetensors", "torchmetrics"} <= about["needs"].keys()
