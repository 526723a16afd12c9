"""Weights of torchvision's and timm's networks, from a file and from their caches, for jobs without internet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from syncnorm import norm
from syncnorm.trainer.contract.initial_weights import WeightAccess
from syncnorm.trainer.contract.norm_choice import chosen_norm
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.data.info import DataInfo
from syncnorm.trainer.models import build_model
from syncnorm.trainer.training.conversion import convert
from syncnorm.trainer.weights.loading import InitialWeights
from syncnorm.trainer.weights.sources import read_source

INFO = DataInfo(task="classification", num_classes=4, shape=(3, 64, 64))
COUNTER = "num_batches_tracked"
MODELS: dict[str, dict[str, Any]] = {
    "torchvision": {"class_path": "torchvision.models.resnet18"},
    "timm": {"name": "timm/resnet18"},
    "timm, norm and activation in one": {"name": "timm/efficientnet_b0"},
}


HEAD = {"torchvision": "fc.*", "timm": "fc.*", "timm, norm and activation in one": "classifier.*"}


def plain(model: dict[str, Any], num_classes: int = 10) -> nn.Module:
    """As the library builds it, every tensor with values of its own."""
    import timm
    import torchvision

    torch.manual_seed(0)
    if "class_path" in model:
        network: nn.Module = torchvision.models.resnet18(num_classes=num_classes)
    else:
        network = timm.create_model(model["name"].removeprefix("timm/"), num_classes=num_classes)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point():
            tensor.normal_(0, 0.1)
        else:
            tensor.fill_(7)
    return network


def started(model: dict[str, Any], kind: str, how: dict[str, Any], folder: Path) -> tuple[nn.Module, InitialWeights]:
    """The network of a job before its first step."""
    document = {"name": "x", "model": model | {"init_from": how}, "data": {"name": "digits", "batch_size": 8}}
    spec = read_spec(document | {"norm": {"kind": kind}})
    assert spec.model.init_from is not None
    origin = read_source(spec.model.init_from, WeightAccess(), "", folder / "staged")
    network, _ = convert(build_model(spec.model, chosen_norm(spec), INFO), spec, None)
    weights = InitialWeights(folder / "staged", origin, spec)
    weights.load(network)
    return network, weights


@pytest.mark.parametrize("form", ["safetensors", "torch"])
@pytest.mark.parametrize("kind", ["sync_batch", "frozen_batch", "group"])
@pytest.mark.parametrize("name", MODELS)
def test_weights_of_a_library_s_network_arrive_from_a_file(name: str, kind: str, form: str, tmp_path: Path) -> None:
    source = plain(MODELS[name]).state_dict()
    file = tmp_path / "w"
    if form == "torch":
        torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in source.items()}, "epoch": 3}, file)
    else:
        save_file(source, file)

    network, weights = started(MODELS[name], kind, {"file": str(file), "drop": [HEAD[name]]}, tmp_path)

    places = norm.tensor_places(network).by_name
    assert weights.report is not None
    dropped = {one.name.removeprefix("module.") for one in weights.report.dropped}
    for key, tensor in source.items():
        if key not in dropped:
            assert torch.equal(places[key].tensor.to(tensor.dtype), tensor), key
    ends = {key.rpartition(".")[2] for key in dropped if not key.startswith(HEAD[name][:-1])}
    assert ends == ({"running_mean", "running_var", COUNTER} if kind == "group" else set())
    assert [one.severity for one in weights.findings] == (["warning"] if kind == "group" else [])


def test_frozen_layers_of_torchvision_load_into_trainable_kinds(tmp_path: Path) -> None:
    import torchvision
    from torchvision.ops.misc import FrozenBatchNorm2d

    frozen = torchvision.models.resnet18(num_classes=4, norm_layer=FrozenBatchNorm2d)
    for name, tensor in frozen.state_dict().items():
        tensor.uniform_(0.5, 2) if "running" in name else tensor.normal_()
    torch.save(frozen.state_dict(), tmp_path / "w")

    network, weights = started(MODELS["torchvision"], "sync_batch", {"file": str(tmp_path / "w")}, tmp_path)

    assert isinstance(network.get_submodule("bn1"), norm.SyncBatchNorm)
    for name, tensor in frozen.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
    assert weights.findings == []


@pytest.mark.parametrize("name", ["torchvision/mobilenet_v3_small", "timm/tf_efficientnet_b0"])
def test_layers_keep_the_eps_that_the_weights_were_trained_with(name: str) -> None:
    """0.001 in these networks. With torch's 1e-5 the same weights give other answers."""
    document = {"name": "x", "model": {"name": name}, "data": {"name": "digits", "batch_size": 8}}
    torch.manual_seed(0)
    network = build_model(read_spec(document).model, read_spec(document).norm, INFO).eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_var.fill_(0.2)  # type: ignore[union-attr]
    x = torch.randn(2, *INFO.shape)
    expected = network(x)

    converted, report = convert(network, read_spec(document), None)

    assert report
    torch.testing.assert_close(converted.eval()(x), expected)
    assert {layer.eps for layer in converted.modules() if isinstance(layer, norm.SyncBatchNorm)} == {1e-3}


_BUILD = """
import sys, torch
from syncnorm.trainer.contract.spec import ModelSpec, NormSpec
from syncnorm.trainer.data.info import DataInfo
from syncnorm.trainer.models import build_model
model = eval(sys.argv[1])
info = DataInfo(task="classification", num_classes=int(sys.argv[2]), shape=(3, 64, 64))
try:
    torch.save(build_model(ModelSpec(**model), NormSpec(), info).state_dict(), sys.argv[3])
except ValueError as error:
    print(error)
"""


def built(model: dict[str, Any], classes: int, folder: Path) -> tuple[Path, str]:
    """The state_dict of a model built by a process of its own, whose caches lie in `folder`, and what it said."""
    environment = os.environ | {"TORCH_HOME": str(folder), "HF_HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", _BUILD, repr(model), str(classes), str(folder / "built")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "built", next((line for line in done.stdout.splitlines() if line.startswith("model.")), "")


def test_weights_of_torchvision_are_taken_from_its_cache(tmp_path: Path) -> None:
    source = plain(MODELS["torchvision"], 1000).state_dict()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(source, tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    model = MODELS["torchvision"] | {"init_args": {"weights": "DEFAULT"}}

    file, _ = built(model, 1000, tmp_path)
    _, said = built(model, 4, tmp_path)

    assert all(torch.equal(tensor, source[name]) for name, tensor in torch.load(file).items())
    assert "model.init_args.weights: the weights of torchvision.models.resnet18 have a head for 1000 classes" in said


def test_weights_of_timm_are_taken_from_its_cache(tmp_path: Path) -> None:
    source = plain(MODELS["timm"], 1000).state_dict()
    cache = tmp_path / "hub" / "models--timm--resnet18.a1_in1k"
    (cache / "snapshots" / "abc").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    save_file(source, cache / "snapshots" / "abc" / "model.safetensors")

    file, said = built(MODELS["timm"] | {"init_args": {"pretrained": True}}, 4, tmp_path)

    found = torch.load(file)
    assert said == ""
    assert found["fc.weight"].shape[0] == 4
    assert all(torch.equal(tensor, source[name]) for name, tensor in found.items() if not name.startswith("fc."))


@pytest.mark.parametrize(
    ("model", "field"),
    [
        (MODELS["torchvision"] | {"init_args": {"weights": "DEFAULT", "num_classes": 1000}}, "model.init_args.weights"),
        ({"class_path": "torchvision.models.detection.ssd300_vgg16"}, "model.init_args"),
        (MODELS["timm"] | {"init_args": {"pretrained": True}}, "model.init_args.pretrained"),
    ],
)
def test_without_internet_the_field_is_named(model: dict[str, Any], field: str, tmp_path: Path) -> None:
    _, said = built(model, 4, tmp_path)

    assert said.startswith(f"{field}: the pretrained weights of "), said
    assert f"({tmp_path}/hub" in said
    assert "Without internet, put them there, or name a file in model.init_from." in said
