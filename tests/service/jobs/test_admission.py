"""Which classes a job may name where uploaded code is off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from syncnorm.service.jobs.admission import against_code, against_files, against_requirements, against_urls
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


def test_models_of_torchvision_by_name_take_plain_arguments() -> None:
    name = "torchvision/fasterrcnn_resnet50_fpn"

    plain = {"backbone": "resnet18", "anchor_sizes": [[16], [32]], "min_size": 192, "weights_backbone": "IMAGENET1K_V1"}
    assert refused(name=name, init_args=plain) == []
    assert refused(name=name, init_args={"norm_layer": "os.system"}) == ["model.init_args.norm_layer"]


def test_files_of_detection_must_exist_and_be_readable_addresses(tmp_path: Path) -> None:
    files = {
        "root": str(tmp_path),
        "annotations": f"{tmp_path}/a.json",
        "val_annotations": "https://example.org/v.json",
    }
    data = {"name": "coco", "batch_size": 1, "init_args": files}
    spec = read_spec({"name": "x", "model": {"name": "torchvision/ssd300_vgg16"}, "data": data})

    assert [problem.path for problem in against_files(spec)] == ["data.init_args.annotations"]
    assert [problem.path for problem in against_urls(spec, ["s3://"])] == ["data.init_args.val_annotations"]


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


PACKAGE = f"sha256:{'0' * 64}"
FILES = {"requirements.txt": "kornia>=0.8\nnumpy<2\n", "pyproject.toml": "[project]\ndependencies = 3\n"}


def of_requirements(requirements: Any, *, allowed: bool = True) -> list[str]:
    def read(_package: str, name: str) -> str:
        if name not in FILES:
            raise FileNotFoundError(name)
        return FILES[name]

    document = {
        "name": "x",
        "model": {"class_path": "mine.Net"},
        "data": {"name": "digits", "batch_size": 8},
        "code": {"package": PACKAGE, "requirements": requirements},
    }
    problems = against_requirements(read_spec(document), allowed, read, {"numpy": "2.4.1", "torch": "2.13.0+cpu"})
    assert {problem.path for problem in problems} <= {"code.requirements"}
    return [problem.message for problem in problems]


@pytest.mark.parametrize(
    "requirements", [["kornia>=0.8", "numpy"], ["torch>=2.11,<2.16"], ['numpy<2; python_version < "3"']]
)
def test_requirements_beside_what_workers_have_are_taken(requirements: list[str]) -> None:
    assert of_requirements(requirements) == []


@pytest.mark.parametrize(
    ("requirements", "says"),
    [
        (["numpy<2"], "numpy<2 conflicts with numpy 2.4.1, which the workers have"),
        (["Torch==2.9.1"], "Torch==2.9.1 conflicts with Torch 2.13.0+cpu"),
        ("requirements.txt", "numpy<2 conflicts with numpy 2.4.1"),
        ("pyproject.toml", "pyproject.toml must hold [project] dependencies as a list of texts"),
        ("more.txt", "the package must hold the file more.txt, and does not"),
        (["-r other.txt"], "options of pip are not taken"),
    ],
)
def test_requirements_that_can_not_be_met_are_refused_by_name(requirements: Any, says: str) -> None:
    (message,) = of_requirements(requirements)
    assert says in message


def test_requirements_need_permission() -> None:
    (message,) = of_requirements(["kornia"], allowed=False)
    assert "SYNCNORM_ALLOW_REQUIREMENTS=on" in message


@pytest.mark.parametrize("name", ["x" * 2000, "file.txt/inner"])
def test_path_that_can_not_be_looked_up_is_refused_as_one_that_is_missing(name: str, tmp_path: Path) -> None:
    (tmp_path / "file.txt").touch()
    data = {"name": "image_folder", "batch_size": 1, "init_args": {"root": f"{tmp_path}/{name}"[-1024:]}}
    (problem,) = against_files(read_spec({"name": "x", "model": {"name": "mlp"}, "data": data}))

    assert problem.path == "data.init_args.root"
    assert problem.message.startswith("must be a folder or file that exists, or a URL")
