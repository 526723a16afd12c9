"""From a study file to its jobs, or to every problem with its place."""

from __future__ import annotations

from typing import Any

import pytest

from syncnorm.service.jobs.study_spec import MAX_CHILDREN, expand, read_study
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.errors import SpecError

BASE: dict[str, Any] = {"model": {"name": "cnn"}, "data": {"name": "digits", "batch_size": 32}}


def study(**changes: Any) -> dict[str, Any]:
    return {"name": "s", "base": BASE, "grid": {"norm.kind": ["batch", "group"]}} | changes


def problems(document: dict[str, Any]) -> list[tuple[str, str]]:
    with pytest.raises(SpecError) as caught:
        expand(read_study(document))
    return [(problem.path, problem.message) for problem in caught.value.problems]


def test_grid_times_seeds_becomes_one_job_each() -> None:
    spec = read_study(study(grid={"norm.kind": ["batch", "group"], "data.batch_size": [2, 4, 8]}, seeds=[3, 5]))

    children = expand(spec)

    assert len(children) == 12
    assert len({child.spec.name for child in children}) == 12
    assert [(child.point["norm.kind"], child.point["data.batch_size"], child.seed) for child in children[:4]] == [
        ("batch", "2", 3),
        ("batch", "2", 5),
        ("batch", "4", 3),
        ("batch", "4", 5),
    ]
    assert (children[-1].spec.norm.kind, children[-1].spec.data.batch_size, children[-1].spec.seed) == ("group", 8, 5)


def test_fields_may_move_together() -> None:
    children = expand(read_study(study(grid={"data.batch_size,optimizer.lr": [[2, 0.1], [8, 0.4]]}, seeds=[0])))

    assert [(child.spec.data.batch_size, child.spec.optimizer.lr) for child in children] == [(2, 0.1), (8, 0.4)]
    assert [child.point for child in children] == [
        {"data.batch_size,optimizer.lr": "2"},
        {"data.batch_size,optimizer.lr": "8"},
    ]


def test_values_may_have_labels_and_replace_a_whole_part() -> None:
    grid = {"norm": {"BN": {"kind": "batch"}, "GN": {"kind": "group", "options": {"num_groups": 2}}}}

    children = expand(read_study(study(grid=grid, seeds=[0])))

    assert [child.point["norm"] for child in children] == ["BN", "GN"]
    assert children[1].spec.norm.options == {"num_groups": 2}


def test_base_is_left_as_it_is() -> None:
    document = study(grid={"model.init_args.channels": [[4], [8, 8]]})
    spec = read_study(document)

    expand(spec)

    assert spec.base == BASE
    assert "init_args" not in BASE["model"]


def test_a_job_is_no_study_and_a_study_no_job() -> None:
    with pytest.raises(SpecError, match="is a job, since it has a model") as job:
        read_study(BASE)
    with pytest.raises(SpecError, match="is a study, since it has base or grid") as whole:
        read_spec(study())

    assert [len(one.value.problems) for one in (job, whole)] == [1, 1]


def test_value_that_no_job_can_have_is_named_in_the_grid() -> None:
    (place, message), *others = problems(study(grid={"norm.kind": ["batch", "batsch"], "optimizer.lr": [0.1, 0.2]}))

    assert place == "/grid/norm.kind/1"
    assert message.startswith("batsch: must be one of none, batch")
    assert others == []


def test_value_of_fields_that_move_together_is_named_in_the_grid() -> None:
    found = problems(study(grid={"data.batch_size,optimizer.lr": [[2, 0.1], [0, 0.4]]}))

    assert [place for place, _ in found] == ["/grid/data.batch_size,optimizer.lr/1"]


def test_problem_of_the_base_is_named_once() -> None:
    found = problems(study(base=BASE | {"model": {"name": "cnnn"}}))

    assert [place for place, _ in found] == ["/base/model/name"]


@pytest.mark.parametrize(
    ("changes", "place", "words"),
    [
        ({"grid": {}}, "/grid", "at least 1 item"),
        ({"grid": {"norm.kind": []}}, "/grid", "norm.kind must have at least one value"),
        ({"grid": {"norm.kind": ["batch", "batch"]}}, "/grid", "norm.kind has two values with the same label"),
        ({"grid": {"seed": [1, 2]}}, "/grid/seed/0", "list the seeds under seeds"),
        ({"grid": {"norm.kinds": ["batch"]}}, "/grid/norm.kinds/0", "is not a known field"),
        ({"grid": {"model.name.x": ["batch"]}}, "/grid/model.name.x/0", 'model.name is "cnn"'),
        ({"grid": {"data.batch_size,optimizer.lr": [2]}}, "/grid/data.batch_size,optimizer.lr/0", "a list of 2 values"),
        ({"seeds": [1, 1]}, "/seeds", "each seed may be given once"),
        ({"seeds": []}, "/seeds", "at least 1 item"),
        ({"sedes": [1]}, "/sedes", "is not a known field"),
        ({"code": {"package": "x"}}, "/code", "is a field of the jobs; write it under base, as base.code"),
        (
            {"name": "a — b"},
            "/name",
            "must begin with a letter from a to z or a digit, followed by more of them, spaces",
        ),
        (
            {"grid": {"optimizer.lr": [x / 1000 for x in range(1, 200)]}},
            "/grid",
            f"must not exceed {MAX_CHILDREN} jobs",
        ),
        ({"metrics": ["most:val/loss"]}, "/metrics/0", "most is not a reduction"),
        ({"base": BASE | {"env": {"A": "x" * 70_000}}}, "/base", "must not exceed 65536 bytes"),
        (
            {"claims": [{"text": "t", "metric": "val/error", "less": {"norm.kind": "layer"}}]},
            "/claims/0/less/norm.kind",
            "must be a value of the axis: batch, group; got 'layer'",
        ),
        (
            {"claims": [{"text": "t", "metric": "val/error", "where": {"norm": "batch"}}]},
            "/claims/0/where/norm",
            "must name an axis of the grid: norm.kind",
        ),
    ],
)
def test_what_is_wrong_with_a_study_is_said_where_it_stands(changes: dict[str, Any], place: str, words: str) -> None:
    found = problems(study(**changes))

    assert found[0][0] == place
    assert words in found[0][1]
