"""Which classes a job may name where uploaded code is off."""

from __future__ import annotations

from typing import Any

import pytest

from syncnorm.service.jobs.admission import against_code
from syncnorm.trainer.contract.spec_reader import read_spec


def refused(**model: Any) -> list[str]:
    """The fields that are refused."""
    data = {"name": "digits", "batch_size": 8}
    return [problem.path for problem in against_code(read_spec({"name": "x", "model": model, "data": data}))]


@pytest.mark.parametrize(
    "class_path",
    ["torchvision.models.resnet50", "torchvision.models.segmentation.fcn_resnet50", "torchvision.models.VGG"],
)
def test_models_of_torchvision_are_allowed(class_path: str) -> None:
    init_args = {"weights": "IMAGENET1K_V2", "norm_layer": "torch.nn.InstanceNorm2d", "replace": [True, 1], "x": None}

    assert refused(class_path=class_path, init_args=init_args) == []


@pytest.mark.parametrize(
    "class_path",
    [
        "os.system",
        "torchvision.models._api.load_state_dict_from_url",  # it unpickles what the address gives
        "torchvision.models.detection._utils.load_state_dict_from_url",
        "torchvision.models.resnet.partial",
        "torchvision.modelsx.resnet50",
        "torchvision.io.read_file",
    ],
)
def test_everything_else_is_refused(class_path: str) -> None:
    assert refused(class_path=class_path) == ["model.class_path"]


@pytest.mark.parametrize(
    "value",
    [
        "os.system",
        "torch.hub.load",
        "torch.nn.functional.relu",
        {"class_path": "subprocess.Popen", "init_args": {"args": "id"}},
        [{"class_path": "subprocess.Popen"}],
        "/etc/passwd",
    ],
)
def test_arguments_that_may_name_code_are_refused(value: Any) -> None:
    model = {"class_path": "torchvision.models.resnet50", "init_args": {"num_classes": 2, "norm_layer": value}}

    assert refused(**model) == ["model.init_args.norm_layer"]


@pytest.mark.parametrize(
    "init_args", [{"pretrained_cfg": {"url": "http://example.org/a.pth"}}, {"checkpoint_path": "/tmp/a.pth"}]
)
def test_weights_that_timm_would_unpickle_are_refused(init_args: dict[str, Any]) -> None:
    assert refused(name="timm/resnet18", init_args=init_args) == [f"model.init_args.{next(iter(init_args))}"]
    assert refused(name="timm/resnet18", init_args={"pretrained": True, "act_layer": "relu", "drop_rate": 0.1}) == []


def test_losses_of_torch_and_scores_of_torchmetrics_are_allowed() -> None:
    loss = {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"weight": [1.0, 2.0], "reduction": "mean"}}
    metrics = {"f1": {"class_path": "torchmetrics.classification.MulticlassF1Score", "init_args": {"num_classes": 10}}}

    assert refused(name="cnn", loss=loss, metrics=metrics) == []


@pytest.mark.parametrize(
    ("field", "part"),
    [
        ("loss", {"class_path": "torch.load", "init_args": {"f": "x"}}),
        ("loss", {"class_path": "torch.nn.modules.loss.F"}),
        ("loss", {"class_path": "torch.nn.MSELoss", "init_args": {"reduction": {"class_path": "os.system"}}}),
        ("inferer", {"class_path": "monai.inferers.SimpleInferer"}),
    ],
)
def test_other_parts_are_refused(field: str, part: dict[str, Any]) -> None:
    assert refused(name="cnn", **{field: part}) == [f"model.{field}"]


def test_data_of_the_user_is_refused() -> None:
    document = {"name": "x", "model": {"name": "cnn"}, "data": {"class_path": "torchvision.models.resnet50"}}

    assert [
        problem.path for problem in against_code(read_spec(document | {"data": document["data"] | {"batch_size": 8}}))
    ] == ["data.class_path"]
