"""What a plan calls an error: known from the spec alone, or found by an attempt before it trains."""

from __future__ import annotations

from typing import Any

import pytest

from syncnorm.norm.kind import smallest_share
from syncnorm.trainer.contract.plan import findings, plan
from syncnorm.trainer.contract.spatial_maps import train_samples
from syncnorm.trainer.contract.spec import JobSpec
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.data import build_data
from syncnorm.trainer.data.sampler import share_bounds
from syncnorm.trainer.worker.findings.audit_findings import require_no_error
from syncnorm.trainer.worker.model_inspection import inspect

OWN = "tests.helpers.trainer.own_code."


def spec(**changes: Any) -> JobSpec:
    document = {"name": "j", "model": {"name": "mlp"}, "data": {"name": "digits", "batch_size": 8}}
    return read_spec(document | changes)


def synthetic(samples: int, batch: int = 8, **data: Any) -> dict[str, Any]:
    return {
        "name": "synthetic",
        "batch_size": batch,
        "init_args": {"shape": [1, 8, 8], "samples": samples, "val_samples": 4},
        **data,
    }


def own(name: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": OWN + name, "init_args": init_args}


@pytest.mark.parametrize(
    "data",
    [
        *(
            {"name": "digits", "batch_size": 8, "init_args": {"val_fraction": part}}
            for part in (0.2, 0.001, 0.5, 0.999)
        ),
        synthetic(37),
        {"name": "digit_scenes", "batch_size": 8, "init_args": {"scenes": 5, "val_scenes": 2}},
    ],
)
def test_number_of_samples_is_known_before_the_data_is(data: dict[str, Any]) -> None:
    job = spec(data=data)

    assert train_samples(job) == len(build_data(job.data, job.seed).train)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 6, 8])
def test_smallest_share_is_that_of_the_sampler(workers: int) -> None:
    for samples in range(1, 40):
        for group in (size for size in range(1, workers + 1) if workers % size == 0):
            bounds = [share_bounds(samples, rank, workers) for rank in range(workers)]
            each = [end - start for start, end in bounds]
            groups = [sum(each[start : start + group]) for start in range(0, workers, group)]
            assert smallest_share(samples, workers, group) == min(filter(None, groups)), (samples, group)


@pytest.mark.parametrize(
    ("kind", "samples", "workers"), [("batch", 33, 1), ("sync_batch", 33, 2), ("batch", 35, 2), ("batch", 33, 2)]
)
def test_a_last_batch_of_one_is_told_in_the_same_words_by_spec_and_network(
    kind: str, samples: int, workers: int
) -> None:
    job = spec(data=synthetic(samples), norm={"kind": kind}, resources={"workers": workers})

    of_spec = [one for one in findings(job, kind) if one.severity == "error"]
    of_network = [one for one in inspect(job).findings if one.severity == "error"]

    assert {(one.code, one.message, one.fix) for one in of_network} == {
        (one.code, one.message, one.fix) for one in of_spec
    }
    (error,) = of_spec
    assert (error.code, error.path) == ("uneven_last_batch", "data.last_batch")
    assert "Set data.last_batch: drop" in error.fix
    with pytest.raises(
        ValueError, match=r"^The plan of this job has 1 error. hidden.1, hidden.4: The last batch.*last_batch: drop"
    ):
        require_no_error(inspect(job).findings)


def test_an_uneven_last_batch_that_trains_names_the_field_as_well() -> None:
    job = spec(data=synthetic(34), norm={"kind": "sync_batch"}, resources={"workers": 2})

    found = [one for one in inspect(job).findings if one.code == "uneven_last_batch"]

    assert {one.severity for one in found} == {"warning"}
    assert all("Set data.last_batch: drop" in one.fix for one in found)
    require_no_error(inspect(job).findings)


def test_own_module_with_shares_of_different_sizes_is_warned() -> None:
    model = {"class_path": OWN + "OwnLoss"}
    uneven = spec(model=model, data=synthetic(35) | {"last_batch": "weight"}, resources={"workers": 2})
    even = spec(model=model, data=synthetic(35), resources={"workers": 2})

    found = {one.code: one for one in plan(uneven, None, inspect(uneven)).findings}

    assert found["uneven_shares"].path == "data.last_batch"
    assert found["uneven_shares"].severity == "warning"
    assert "uneven_shares" not in {one.code for one in inspect(even).findings}


@pytest.mark.parametrize(
    ("changes", "path", "says"),
    [
        ({"model": own("Net", width=3, hight=1)}, "model.init_args", "hight"),
        ({"model": own("Net", width="wide")}, "model.init_args", "width"),
        (
            {"model": {"class_path": OWN + "large_net", "init_args": {"width": 1, "hight": 1}}},
            "model.init_args",
            "hight",
        ),
        ({"model": own("Nett")}, "model.class_path", "Nett"),
        (
            {"data": {"class_path": OWN + "RandomSamples", "batch_size": 8, "init_args": {"colour": 1}}},
            "data",
            "colour",
        ),
        (
            {"norm": {"kind": "group", "options": {"num_groups": 7}}, "model": {"name": "resnet"}},
            "",
            "7 does not divide",
        ),
    ],
)
def test_what_can_not_be_built_names_the_field(changes: dict[str, Any], path: str, says: str) -> None:
    (finding,) = inspect(spec(**changes)).findings

    assert finding.path.startswith(path)
    assert (finding.code, finding.severity) == ("cannot_build", "error")
    assert says in finding.message


def test_a_batch_size_without_effect_is_told() -> None:
    data = own("RandomSamples", batch_size=64) | {"batch_size": 8}

    (found,) = [one for one in plan(spec(data=data), None).findings if one.code == "batch_size_twice"]

    assert (found.path, found.severity) == ("data.init_args.batch_size", "warning")
    same = spec(data=data | {"init_args": {"batch_size": 8}})
    assert "batch_size_twice" not in {one.code for one in plan(same, None).findings}
