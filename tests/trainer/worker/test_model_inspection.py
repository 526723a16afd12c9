"""A dry run says what would become of the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from syncnorm.trainer.contract.initial_weights import WeightAccess
from syncnorm.trainer.contract.plan import Inspection, plan
from syncnorm.trainer.contract.spec import InitFrom
from syncnorm.trainer.contract.spec_findings import alike
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.contract.text import name_some
from syncnorm.trainer.data import build_data
from syncnorm.trainer.models import build_model
from syncnorm.trainer.worker.findings.audit_findings import audit
from syncnorm.trainer.worker.model_inspection import inspect
from tests.helpers.trainer import own_module_jobs


def spec(**changes: Any) -> dict[str, Any]:
    return {
        "name": "a",
        "model": {"name": "resnet", "init_args": {"depth": 8}},
        "data": {"name": "digits", "batch_size": 4},
        "resources": {"workers": 2},
    } | changes


def test_every_layer_that_changes_is_listed() -> None:
    inspected = inspect(read_spec(spec()))

    assert len(inspected.conversion) == 7
    assert inspected.conversion[0] == {"path": "bn1", "from": "BatchNorm2d", "to": "SyncBatchNorm"}


def test_findings_of_spec_and_network_come_together() -> None:
    document = read_spec(spec(norm={"kind": "batch"}, train={"epochs": 1, "accumulate": 2}))

    found = plan(document, None, inspect(document)).findings

    assert "accumulation_splits_statistics" in {finding.code for finding in found}
    assert any(finding.path.startswith("layer") for finding in found)


def test_what_holds_for_the_whole_job_is_said_once() -> None:
    document = read_spec(spec(norm={"kind": "batch"}, train={"epochs": 1, "accumulate": 2}))

    found = plan(document, None, inspect(document)).findings

    split = [finding for finding in found if finding.code == "accumulation_splits_statistics"]
    assert [finding.path for finding in split] == ["train.accumulate"]


def test_what_the_audit_says_of_each_layer_is_not_said_of_the_spec_as_well() -> None:
    document = read_spec(spec(norm={"kind": "batch"}, data={"name": "digits", "batch_size": 1}))
    inspection = inspect(document)

    of_spec = [finding.code for finding in plan(document, None).findings]
    together = [finding.code for finding in plan(document, None, inspection).findings]

    assert "few_samples_per_statistic" in of_spec
    assert "few_samples_per_statistic" not in together
    assert together.count("statistics_of_one_worker") == 7


def test_like_findings_are_named_once_with_their_places() -> None:
    document = read_spec(spec(norm={"kind": "batch"}, data={"name": "digits", "batch_size": 1}))
    found = inspect(document).findings

    grouped = alike(found)

    assert sum(len(paths) for _, paths in grouped) == len(found)
    (places,) = [paths for finding, paths in grouped if finding.code == "statistics_of_one_worker"]
    assert name_some(places) == "bn1, layer1.0.bn1, layer1.0.bn2 and 4 more"
    assert name_some(places[:2]) == "bn1, layer1.0.bn1"
    assert name_some([""]) == ""


def test_a_network_that_cannot_be_built_is_a_finding_not_a_crash() -> None:
    document = read_spec(spec(norm={"kind": "group", "options": {"num_groups": 7}}))

    (finding,) = inspect(document).findings

    assert (finding.code, finding.severity) == ("cannot_build", "error")
    assert "7 does not divide 16" in finding.message


def test_data_that_cannot_be_read_is_said_of_its_field_and_not_of_the_network(tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text('{"images": []}')
    data = {"root": str(tmp_path), "annotations": str(tmp_path / "boxes.json")}
    document = read_spec(
        spec(
            model={"name": "torchvision/fasterrcnn_resnet50_fpn"},
            data={"name": "coco", "batch_size": 1, "init_args": data},
        )
    )

    (finding,) = inspect(document).findings

    assert finding.path == "data.init_args.annotations"
    assert finding.message.startswith(f"{tmp_path}/boxes.json must be a COCO file")


def test_file_without_weights_is_an_error_before_training(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_text("no weights")
    document = read_spec(spec())
    how = document.model.model_copy(update={"init_from": InitFrom(file=str(tmp_path / "weights.pth"))})

    found = inspect(document.model_copy(update={"model": how}), WeightAccess()).findings

    (finding,) = [one for one in found if one.code == "weights_not_read"]
    assert (finding.path, finding.severity) == ("model.init_from.file", "error")
    assert finding.message.startswith("model.init_from.file must")


def test_a_network_in_double_takes_an_example_in_double() -> None:
    """An attempt in 64-true audits the network that it trains, which is double by then."""
    document = read_spec(spec())
    data = build_data(document.data, document.seed)
    network = build_model(document.model, document.norm, data.info).double()

    assert [finding.code for finding in audit(network, data, document, 2) if finding.severity == "error"] == []


def test_layer_that_only_a_training_step_reaches_is_no_warning() -> None:
    document = read_spec(own_module_jobs.job("Projects", workers=2, norm={"kind": "sync_batch"}))

    (finding,) = (one for one in inspect(document).findings if one.path == "projector.1")

    assert (finding.code, finding.severity) == ("layer_not_reached", "info")
    assert "A training_step may" in finding.message


def without_forward(**export: Any) -> Inspection:
    document = own_module_jobs.job("WithoutForward") | {"data": {"name": "digits", "batch_size": 8}, "export": export}
    return inspect(read_spec(document))


def test_module_without_a_forward_is_not_told_to_set_an_example() -> None:
    found = without_forward()

    (finding,) = (one for one in found.findings if one.code == "not_audited")
    assert "define forward" in finding.fix
    assert found.guarantees is not None
    assert found.guarantees.exported.holds == "no"


def test_part_of_a_module_without_a_forward_is_promised_an_export() -> None:
    found, wrong = without_forward(module="net"), without_forward(module="ne")

    (finding,) = (one for one in found.findings if one.code == "not_audited")
    assert finding.fix == "Nothing: training does without, and net is exported."
    assert found.guarantees is not None
    assert wrong.guarantees is not None
    assert found.guarantees.exported.holds == "yes"
    assert wrong.guarantees.exported.holds == "no"
    assert "WithoutForward has no ne. It has net." in wrong.guarantees.exported.why
