"""A dry run says what would become of the network."""

from __future__ import annotations

from typing import Any

from trainer.inspection import inspect
from trainer.plan import plan
from trainer.spec_reader import read_spec


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
    document = read_spec(spec(norm={"kind": "batch"}, data={"name": "digits", "batch_size": 1}))

    found = plan(document, None, inspect(document)).findings

    assert {"few_samples_per_statistic"} < {finding.code for finding in found}
    assert any(finding.path.startswith("layer") for finding in found)


def test_a_network_that_cannot_be_built_is_a_finding_not_a_crash() -> None:
    document = read_spec(spec(norm={"kind": "group", "options": {"num_groups": 7}}))

    (finding,) = inspect(document).findings

    assert (finding.code, finding.severity) == ("cannot_build", "error")
    assert "7 does not divide 16" in finding.message
