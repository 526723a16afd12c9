from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from syncnorm.trainer.contract.spec import DataSpec, ModelSpec, NormSpec
from syncnorm.trainer.data import DataInfo, build_data
from syncnorm.trainer.data.loader import train_loader
from syncnorm.trainer.models import build_model
from syncnorm.trainer.models.user_model import is_lightning_module
from syncnorm.trainer.user_code.class_path import instantiate
from tests.helpers.paths import ROOT

INFO = DataInfo("classification", 7, (1, 8, 8))


@pytest.fixture(autouse=True)
def _own_code_is_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "helpers" / "trainer"))


def _model(class_path: str, **init_args: Any) -> Any:
    return build_model(ModelSpec(class_path=class_path, init_args=init_args), NormSpec(), INFO)


def _data(class_path: str = "own_code.RandomSamples", **init_args: Any) -> Any:
    return build_data(DataSpec(class_path=class_path, batch_size=2, init_args=init_args), seed=0)


@pytest.mark.parametrize("class_path", ["own_code.Net", "own_code.large_net"])
def test_class_or_function_is_called_with_the_classes_and_channels_of_the_data(class_path: str) -> None:
    net = _model(class_path, width=5)

    assert (net.width, net.num_classes, net.in_channels) == (5, 7, 1)


def test_what_the_user_says_is_kept() -> None:
    net = _model("own_code.Net", width=5, num_classes=2)

    assert net.num_classes == 2


def test_nested_class_paths_are_built() -> None:
    nested = {"class_path": "own_code.Net", "init_args": {"width": 3, "act": {"class_path": "torch.nn.SiLU"}}}

    lit = _model("own_code.LitNet", net=nested)

    assert isinstance(lit.net.act, nn.SiLU)
    assert lit.net.width == 3


@pytest.mark.parametrize(
    ("class_path", "init_args", "message"),
    [
        ("nowhere.Net", {}, r"^model.class_path: there is no module 'nowhere' to import nowhere.Net from"),
        ("own_code.Nett", {}, r"^model.class_path must name a class or a function, but own_code has no 'Nett'"),
        ("own_code.NOT_CALLABLE", {}, r"own_code has something that can't be called under 'NOT_CALLABLE'"),
        ("own_code.Net", {}, r"^model.init_args must fit own_code.Net\(width: .*required: width"),
        ("own_code.Net", {"width": "wide"}, r"^model.init_args must fit own_code.Net.*\n.*Got value: wide"),
        ("own_code.Net", {"width": 3, "hight": 3}, r"^model.init_args must fit own_code.Net.*no argument 'hight'"),
        (
            "own_code.not_a_module",
            {},
            r"^model.class_path must give an nn.Module, but own_code.not_a_module gave a int",
        ),
        ("broken_code.Net", {}, r"^model.class_path: importing broken_code failed with ZeroDivisionError"),
        ("needy_code.Net", {}, r"^model.class_path: needy_code needs the module 'not_installed', which is not"),
    ],
)
def test_mistake_in_a_model_names_the_path_and_the_remedy(
    class_path: str, init_args: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_code.py").write_text("1 / 0\n")
    (tmp_path / "needy_code.py").write_text("import not_installed\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(ValueError, match=message):
        _model(class_path, **init_args)


NET = {
    "_target_": "torch.nn.Sequential",
    "_args_": [
        {"_target_": "torch.nn.Linear", "in_features": 64, "out_features": 4},
        {"_target_": "torch.nn.BatchNorm1d", "num_features": 4},
    ],
}
SGD = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.25}
STEPS = {"_target_": "torch.optim.lr_scheduler.StepLR", "_partial_": True, "_convert_": "all", "step_size": 3}


def test_arguments_as_hydra_writes_them_are_made() -> None:
    module = instantiate(
        "model",
        "configured.TemplateModule",
        {"net": NET, "optimizer": SGD, "scheduler": STEPS, "compile": True},
        fill={},
    )

    (optimizer,), (scheduler,) = module.configure_optimizers()
    assert [type(layer) for layer in module.net] == [nn.Linear, nn.BatchNorm1d]
    assert (type(optimizer), optimizer.param_groups[0]["lr"], scheduler.step_size) == (torch.optim.SGD, 0.25, 3)
    assert module.compiled is True


def test_targets_are_found_in_lists_and_with_others_inside() -> None:
    layers = [{"_target_": "torch.nn.Linear", "in_features": 64, "out_features": 4}]
    norm = {"_target_": "torch.nn.GroupNorm", "_partial_": True, "_args_": [2]}

    net = _model("configured.TakesLayers", layers=layers, norm=norm)

    assert [type(layer) for layer in net.layers] == [nn.Linear, nn.GroupNorm]


def test_configuration_as_one_object_is_a_namespace() -> None:
    assert _model("configured.TakesNamespace", hparams={"width": 3}).layer.in_features == 3


@pytest.mark.parametrize(
    ("init_args", "message"),
    [
        (
            {"optimizer": {"_target_": "torch.optim.Sgd", "_partial_": True}},
            r"model\.init_args\.optimizer\._target_ must",
        ),
        ({"net": {"_target_": "nowhere.Net"}}, r"model\.init_args\.net\._target_: there is no module 'nowhere'"),
        ({"net": NET, "optimizer": SGD}, "required: scheduler"),
        (
            {"net": NET, "scheduler": STEPS, "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}},
            "_partial_: true",
        ),
    ],
)
def test_mistake_in_a_target_names_the_path_and_the_remedy(init_args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        instantiate("model", "configured.TemplateModule", init_args, fill={})


@pytest.mark.filterwarnings("ignore")  # jsonargparse will want annotations one day (4.53)
def test_class_for_a_parameter_without_annotation_is_built_or_said_to_need_more() -> None:
    built = instantiate("model", "configured.TakesAnything", {"net": {"class_path": "torch.nn.ReLU"}}, fill={})
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}

    assert isinstance(built.net, nn.ReLU)
    with pytest.raises(ValueError, match=r"^model\.init_args\.optimizer: its class_path can't .* _partial_: true"):
        instantiate("model", "configured.TakesAnything", {"optimizer": sgd}, fill={})


def test_error_of_the_users_own_code_is_passed_on() -> None:
    with pytest.raises(RuntimeError, match="weights are gone"):
        _model("own_code.Raises")


def test_missing_timm_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)

    with pytest.raises(ValueError, match=r"timm/resnet50 needs timm.*pip install 'syncnorm\[vision\]'"):
        build_model(ModelSpec(name="timm/resnet50"), NormSpec(), INFO)


def test_missing_torchvision_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)

    with pytest.raises(ValueError, match=r"torchvision.* install"):
        _model("torchvision.models.resnet50")


def test_data_module_gives_its_samples_and_collate_function() -> None:
    data = _data(samples=5, shuffle=False)

    batches = list(train_loader(data, global_batch=4))

    assert data.info == DataInfo("classification", 3, (1, 4, 4))
    assert [batch.x[:, 0, 0, 0].tolist() for batch in batches] == [[0, 1, 2, 3], [4]]
    assert [batch.y.tolist() for batch in batches] == [[1, 2, 3, 1], [2]]


def test_empty_share_of_a_data_module_has_its_shapes() -> None:
    data = _data(samples=5, shuffle=False)

    last = list(train_loader(data, global_batch=4, rank=1, world_size=2))[-1]

    assert last.x.shape == (0, 1, 4, 4)
    assert last.y.shape == (0,)
    assert last.weight == 0.0


def test_data_module_that_shuffles_is_shuffled() -> None:
    batch = next(iter(train_loader(_data(samples=64), global_batch=64)))

    assert sorted(batch.x[:, 0, 0, 0].tolist()) == list(range(64))
    assert batch.x[:, 0, 0, 0].tolist() != list(range(64))


def test_masks_make_the_task_segmentation() -> None:
    assert _data(masks=True).info == DataInfo("segmentation", 3, (1, 4, 4))


@pytest.mark.parametrize(
    ("class_path", "init_args", "message"),
    [
        (
            "own_code.Net",
            {"width": 3},
            r"^data.class_path must give a LightningDataModule, but own_code.Net gave a Net",
        ),
        ("own_code.RandomSamples", {"stream": True}, r"^data.class_path: .*train_dataloader\(\) must have a map-style"),
        ("own_code.RandomSamples", {"weighted": True}, r"must leave sampling to the trainer, got a WeightedRandomSamp"),
        ("own_code.RandomSamples", {"dicts": True}, r"samples must be \(tensor, target\) pairs, got dict"),
        ("own_code.Uncounted", {}, r"^data.class_path: own_code.Uncounted must have an attribute num_classes"),
        ("own_code.RandomSamples", {"sample": 3}, r"^data.init_args must fit .*there is no argument 'sample'"),
    ],
)
def test_mistake_in_a_data_module_names_the_path_and_the_remedy(
    class_path: str, init_args: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _data(class_path, **init_args)


def test_own_code_does_not_draw_on_the_global_generator_when_read() -> None:
    data = _data(samples=8)
    before = torch.get_rng_state()

    list(train_loader(data, global_batch=4))

    assert torch.equal(torch.get_rng_state(), before)


NAMES = {
    "person (adult)": 3,
    "a.b": 1,
    "a": {"b": {"c d": [{"e f": 1}]}},
    "日本": 4,
    "init_args": 5,
    "x:y/z\\%": 6,
    "-": 7,
}


@pytest.mark.parametrize(
    "parameter", ["names", "names=None", "names: dict = {}", "names: 'dict[str, object] | None' = None"]
)
def test_map_of_any_names_arrives_as_it_was_given(
    parameter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"named_{abs(hash(parameter))}"
    body = "        super().__init__()\n        self.names = names\n"
    code = f"from torch import nn\nclass Made(nn.Module):\n    def __init__(self, {parameter}):\n{body}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))

    assert _model(f"{name}.Made", names=NAMES).names == NAMES


@pytest.mark.parametrize(
    ("code", "init_args", "message"),
    [
        ("def Made(net): return net", {}, r"needs the argument 'net', which has no default"),
        ("def Made(width: int = 1): return nn.Linear(width, 1)", {"width": None}, r"'width' must be given, got null"),
        ("def Made(width, /): return nn.Linear(width, 1)", {"width": 1}, r"takes 'width' by position only"),
        (
            "def hide(f): return lambda *args, **kwargs: f(*args, **kwargs)\n"
            "@hide\ndef Made(width: int = 1): return nn.Linear(width, 1)",
            {"width": 2},
            r"no argument 'width'. What it does with its \*\*kwargs can't be seen .* functools.wraps",
        ),
        (
            "class Made(nn.Module):\n    def __init__(self, **rest): ...",
            {"a": {"b c": 1}},
            "there is no argument 'a'. What",
        ),
    ],
)
def test_arguments_that_would_not_arrive_are_told(
    code: str, init_args: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"made_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(f"from torch import nn\n{code}\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(ValueError, match=rf"^model.init_args must fit {name}.Made\(.*{message}"):
        _model(f"{name}.Made", **init_args)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("Small", False),
        ("Targets", False),
        ("says_network", False),
        ("says_any", None),
        ("says_module", None),
        ("says_lightning", True),
    ],
)
def test_what_a_class_path_makes_is_known_where_it_says_so(name: str, is_one: bool | None) -> None:
    assert is_lightning_module(f"tests.helpers.trainer.own_tasks.{name}") is is_one
