"""Weights of converted networks of torchvision and timm load strictly into those that these libraries make."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from onnxruntime import InferenceSession
from safetensors.torch import load_file
from torch import nn

from syncnorm import norm
from syncnorm.service.client.client import Client
from tests.helpers.norm.models import trained
from tests.helpers.norm.splits import relative_error
from tests.norm.conversion.test_plain_state import PLAIN, REFUSED


def _torchvision() -> nn.Module:
    import torchvision

    model: nn.Module = torchvision.models.resnet18(num_classes=10)
    return model


def _timm(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name, num_classes=10)
        return model

    return make


MODELS = {
    "torchvision resnet18": _torchvision,
    "timm resnet18": _timm("resnet18"),
    "timm mobilenetv3_small_050": _timm("mobilenetv3_small_050"),  # whose BatchNormAct2d has the activation inside
}


def _pairs(kinds: set[str]) -> list[tuple[str, str]]:
    return [(name, kind) for name in MODELS for kind in sorted(kinds)]


@pytest.mark.parametrize(("name", "kind"), _pairs(PLAIN))
def test_plain_weights_load_strictly_and_answer_the_same(name: str, kind: str) -> None:
    torch.manual_seed(0)
    plain, x = trained(MODELS[name]()).eval(), torch.randn(2, 3, 64, 64)
    model = norm.convert(copy.deepcopy(plain), kind, eps=1e-3)[0].eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)

    plain.load_state_dict(norm.plain_state_dict(model))

    assert relative_error(plain(x).detach(), model(x).detach()) < 1e-4  # fp32 over 18 layers and more


NOT_RESIDUAL = ("timm mobilenetv3_small_050", "fixup")
"""`convert` itself refuses it."""


@pytest.mark.parametrize(("name", "kind"), [pair for pair in _pairs(set(REFUSED)) if pair != NOT_RESIDUAL])
def test_other_kinds_are_refused_with_what_to_use(name: str, kind: str) -> None:
    model, _ = norm.convert(MODELS[name](), kind)

    with pytest.raises(ValueError, match=r"Load the model's own state_dict into a network that norm.convert"):
        norm.plain_state_dict(model)


JOBS = {
    "torchvision resnet18": {"class_path": "torchvision.models.resnet18"},
    "timm resnet18": {"name": "timm/resnet18", "init_args": {"drop_path_rate": 0.0}},
}


@pytest.mark.stack
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", JOBS)
def test_model_of_a_job_loads_into_the_network_of_its_library(name: str, client: Client, tmp_path: Path) -> None:
    synthetic = {"name": "synthetic", "batch_size": 16, "init_args": {"samples": 64, "val_samples": 32}}
    document = {"name": "plain", "model": JOBS[name], "data": synthetic, "train": {"steps": 4}}
    done = client.wait(client.submit(document | {"export": {"formats": ["onnx"]}}), timeout_s=300)
    assert (done["state"], done["export"]["state"]) == ("succeeded", "certified"), done["export"] or done["message"]
    weights, onnx = (client.download(done, f"export/{file}", tmp_path) for file in ("plain.safetensors", "model.onnx"))
    x = torch.randn(4, 3, 32, 32)

    plain = MODELS[name]().eval()
    plain.load_state_dict(load_file(weights))

    exported = InferenceSession(str(onnx), providers=["CPUExecutionProvider"]).run(None, {"input": x.numpy()})[0]
    assert relative_error(plain(x).detach(), torch.from_numpy(exported)) < 1e-4  # fp32, folded
    assert json.loads(client.download(done, "export/model.json", tmp_path).read_text())["needs"].keys() >= {
        name.split(maxsplit=1)[0]
    }
