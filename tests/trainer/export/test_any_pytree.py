"""Networks that take and give dicts, tuples and several tensors are exported, and compared output by output."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from syncnorm import norm
from syncnorm.trainer.contract.spec import ExportSpec
from syncnorm.trainer.errors import NoExportError
from syncnorm.trainer.export import certification
from syncnorm.trainer.export.certificate import passed
from syncnorm.trainer.export.certification import (
    Place,
    TrainedModel,
    certify_and_publish,
    export_and_compare,
    mismatch,
    publish_weights,
)
from syncnorm.trainer.export.forward_inputs import ForwardInputs
from syncnorm.trainer.export.held_out import inputs_of_batches
from syncnorm.trainer.export.mlflow_publisher import Publisher
from tests.trainer.conftest import Mlflow

# Exporters warn about their own internals.
pytestmark = pytest.mark.filterwarnings("ignore")


class Heads(nn.Module):
    """Two inputs, of which one has a default, and a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 5), norm.build("sync_batch", 5, dims=1), nn.ReLU())
        self.out, self.aux = nn.Linear(5, 3), nn.Linear(5, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        h = self.body(x if mask is None else x * mask)
        return {"out": self.out(h), "aux": [self.aux(h), h.argmax(1)]}


class Named(Heads):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        out: Tensor = self.out(self.body(batch["left"] + batch["right"]))
        return out


class Scored(NamedTuple):
    """An answer as anomalib has it."""

    out: Tensor
    explained: Tensor | None = None


@dataclass
class Output:
    scored: Scored
    hidden: list[Tensor]


class Answers(Heads):
    """Answers with classes of its own."""

    def forward(self, x: Tensor) -> Output:  # type: ignore[override]
        h = self.body(x)
        return Output(Scored(self.out(h)), [h])


class PassesOn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 5), norm.build("sync_batch", 5, dims=1))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.net(*args, **kwargs)


class Detects(nn.Module):
    """Takes images of different sizes, and returns what no graph can."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 1, 1)

    def forward(self, images: list[Tensor]) -> list[Any]:
        return [type("Boxes", (), {})() for _ in images]


def trained(network: nn.Module, held_out: list[ForwardInputs]) -> TrainedModel:
    return TrainedModel("j", network.eval(), held_out, {}, {}, seed=0)


def inputs(samples: int, seed: int = 0) -> ForwardInputs:
    generator = torch.Generator().manual_seed(seed)
    x, mask = (torch.randn(samples, 6, generator=generator) for _ in range(2))
    return ForwardInputs((x,), {"mask": mask})


def both(samples: int) -> dict[str, Tensor]:
    return {"left": inputs(samples).args[0], "right": inputs(samples).kwargs["mask"], "label": torch.arange(samples)}


def test_dict_of_outputs_is_compared_in_every_runtime(tmp_path: Path) -> None:
    compared = export_and_compare(trained(Heads(), [inputs(4), inputs(4, 1), inputs(3, 2)]), ExportSpec(), tmp_path)

    assert {check.runtime for check in compared.checks} == {"eager", "torch.export", "onnxruntime"}
    assert [check.samples for check in compared.checks] == [11] * 6  # with another number in the last batch
    assert passed(compared.checks), compared.checks
    assert {check.leaf for check in compared.checks} <= {"['out']", "['aux'][0]", "['aux'][1]"}


def test_named_tuples_and_dataclasses_are_exported_as_dicts(tmp_path: Path) -> None:
    compared = export_and_compare(trained(Answers(), [ForwardInputs((torch.randn(4, 6),))]), ExportSpec(), tmp_path)

    assert {check.runtime for check in compared.checks} == {"eager", "torch.export", "onnxruntime"}
    assert passed(compared.checks), compared.checks
    assert set(compared.example[1]) == {"['scored']['out']", "['hidden'][0]"}
    program = torch.export.load(tmp_path / "model.pt2").module()
    assert isinstance(program(torch.randn(3, 6))["scored"], dict)


def test_arguments_by_name_may_come_in_any_order(tmp_path: Path) -> None:
    x, mask = inputs(4).args[0], inputs(4).kwargs["mask"]

    compared = export_and_compare(trained(Heads(), [ForwardInputs((), {"mask": mask, "x": x})]), ExportSpec(), tmp_path)

    assert passed(compared.checks), compared.checks


def test_worst_output_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damage(network: nn.Module, fold: bool) -> tuple[nn.Module, list[Any]]:
        copy = Heads().eval()
        copy.load_state_dict(network.state_dict())
        with torch.no_grad():
            copy.aux.bias += 0.1
        return copy, []

    monkeypatch.setattr(certification, "inference_network", damage)

    compared = export_and_compare(trained(Heads(), [inputs(4)]), ExportSpec(formats=[]), tmp_path)

    assert {check.leaf for check in compared.checks} == {"['aux'][0]"}
    assert not passed(compared.checks)
    assert "in output ['aux'][0]" in mismatch(compared.checks)


def test_whole_dict_is_an_input(tmp_path: Path) -> None:
    network = Named()
    held_out = inputs_of_batches(network, [both(4), both(2)])
    assert isinstance(held_out, list)

    compared = export_and_compare(trained(network, held_out), ExportSpec(), tmp_path)

    assert passed(compared.checks), compared.checks
    assert [check.samples for check in compared.checks] == [6] * 6


def test_batches_of_another_shape_are_left_out_of_the_comparison(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    held_out = [ForwardInputs((torch.randn(2, 1, size, size),)) for size in (8, 9, 8)]

    compared = export_and_compare(trained(network, held_out), ExportSpec(), tmp_path)

    assert [check.samples for check in compared.checks] == [4] * 6
    assert passed(compared.checks)


def test_single_sample_a_batch_makes_an_example_for_any_number(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.Flatten())

    compared = export_and_compare(
        trained(network, [ForwardInputs((torch.randn(1, 1, 4, 4, 4),))] * 3), ExportSpec(), tmp_path
    )

    assert passed(compared.checks), compared.checks


def test_submodule_is_compared_on_what_it_is_given(tmp_path: Path) -> None:
    compared = export_and_compare(trained(Heads(), [inputs(4)]), ExportSpec(module="body"), tmp_path)

    assert passed(compared.checks)
    assert {check.leaf for check in compared.checks} == {""}
    assert compared.example[0].args[0].shape == (2, 6)


def test_output_without_tensors_is_refused_in_a_sentence(tmp_path: Path) -> None:
    held_out = [ForwardInputs(([torch.randn(3, 4, 5), torch.randn(3, 6, 7)],))]

    with pytest.raises(NoExportError, match="forward must return tensors"):
        export_and_compare(trained(Detects(), held_out), ExportSpec(), tmp_path)


def test_mlflow_model_takes_and_gives_named_tensors(tmp_path: Path, mlflow_server: Mlflow) -> None:
    model, place = trained(Heads(), [inputs(4), inputs(3, 1)]), Place(tmp_path)
    publisher = Publisher(mlflow_server.uri, mlflow_server.new_run())

    record = certify_and_publish(model, ExportSpec(), place, publisher, publish_weights(model, place, publisher))

    checks = record.certificate["checks"]
    assert ("mlflow.pyfunc", True) in {(check["runtime"], check["passed"]) for check in checks}
    loaded = mlflow.pyfunc.load_model(record.uri)
    x = inputs(5).args[0]
    answer = loaded.predict({"x": x.numpy(), "mask": torch.ones(5, 6).numpy()})
    assert sorted(answer) == ["output_aux_0", "output_aux_1", "output_out"]
    with torch.no_grad():
        assert_close(torch.from_numpy(answer["output_out"]), model.network(x)["out"])  # fp32, folded
    assert [(one.name, one.shape) for one in loaded.metadata.get_input_schema().inputs] == [
        ("x", (-1, 6)),
        ("mask", (-1, 6)),
    ]


def test_mlflow_model_of_a_forward_that_passes_on_its_input(tmp_path: Path, mlflow_server: Mlflow) -> None:
    model, place = trained(PassesOn(), [ForwardInputs((torch.randn(4, 6),))]), Place(tmp_path)
    publisher = Publisher(mlflow_server.uri, mlflow_server.new_run())

    record = certify_and_publish(model, ExportSpec(), place, publisher, publish_weights(model, place, publisher))

    checks = record.certificate["checks"]
    assert ("mlflow.pyfunc", True) in {(check["runtime"], check["passed"]) for check in checks}


def test_without_an_onnx_file_several_tensors_make_no_mlflow_model(tmp_path: Path, mlflow_server: Mlflow) -> None:
    model, place = trained(Heads(), [inputs(4)]), Place(tmp_path)
    publisher = Publisher(mlflow_server.uri, mlflow_server.new_run())
    weights = publish_weights(model, place, publisher)

    record = certify_and_publish(model, ExportSpec(formats=["pt2"]), place, publisher, weights)

    assert (record.uri, record.certificate["passed"]) == (None, True)
    assert "Add onnx to export.formats" in record.certificate["no_model"]
    with pytest.raises(NoExportError, match="register_as can't be honoured"):
        certify_and_publish(model, ExportSpec(formats=["pt2"], register_as="m"), place, publisher, weights)


def test_example_input_array_says_what_is_held_out() -> None:
    network = Heads()
    network.example_input_array = (torch.ones(2, 6),)

    found = inputs_of_batches(network, [(torch.zeros(3, 6), torch.arange(3))])
    none = inputs_of_batches(network, [])

    assert isinstance(found, list)
    assert isinstance(none, list)
    assert found[0].args[0].shape == (3, 6)  # real samples, of the form of the example
    assert none[0].args[0].shape == (2, 6)


class Halves(nn.Module):
    """Needs even sides, as a U-Net needs multiples of its stride."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + nn.functional.interpolate(nn.functional.avg_pool3d(x, 2), scale_factor=2)


def test_example_input_array_says_how_large_a_window_of_a_volume_is() -> None:
    network = Halves()
    network.example_input_array = torch.zeros(1, 1, 4, 4, 4)
    volume = torch.arange(7.0 * 6 * 5).view(1, 1, 7, 6, 5)
    small = torch.zeros(1, 1, 3, 6, 5)

    found = inputs_of_batches(network, [{"image": volume, "label": volume.long()}, {"image": small}])

    assert isinstance(found, list)
    assert len(found) == 1  # the second volume is smaller than a window
    assert torch.equal(found[0].args[0], volume[:, :, 1:5, 1:5, 0:4])


def test_volumes_that_the_network_refuses_give_way_to_patches_of_training() -> None:
    whole, patch = torch.zeros(1, 1, 7, 6, 5), torch.zeros(2, 1, 4, 4, 4)

    found = inputs_of_batches(Halves(), [{"image": whole}], [{"image": patch}])
    unclear = inputs_of_batches(Halves(), [{"image": whole}], [{"image": whole}])

    assert isinstance(found, list)
    assert found[0].args[0].shape == patch.shape
    assert not isinstance(unclear, list)
    assert "takes no part of a batch that is a dict with image" in unclear.reason
