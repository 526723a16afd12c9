"""A field that may be a number or a word has one error, at its own path."""

from __future__ import annotations

from typing import Any

import pytest

from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.errors import SpecError

DOCUMENT = {"name": "a", "model": {"name": "resnet"}, "data": {"name": "digits", "batch_size": 8}}


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"norm": {"eps": 1e300}}, "norm.eps", "must be at most 1000.0; got 1e+300"),
        ({"norm": {"eps": "kep"}}, "norm.eps", "should be a valid number or 'keep'; got 'kep'"),
        ({"norm": {"momentum": 5}}, "norm.momentum", "must be at most 1.0; got 5"),
        ({"norm": {"affine": "yes"}}, "norm.affine", "valid boolean or 'keep'; got 'yes'. Write true or false."),
        ({"norm": {"group": "host"}}, "norm.group", "should be 'world' or 'node' or a valid integer; got 'host'"),
        ({"norm": {"group": 10**9}}, "norm.group", "must be at most 4096; got 1000000000"),
        ({"export": {"checkpoint": "lst"}}, "export.checkpoint", "'best' or 'last' or a valid integer; got 'lst'"),
    ],
)
def test_what_it_may_be_is_said_in_one_sentence(changes: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(SpecError) as refused:
        read_spec(DOCUMENT | changes)

    (problem,) = refused.value.problems
    assert problem.path == path
    assert message in problem.message


def test_several_wrong_fields_have_one_error_each() -> None:
    with pytest.raises(SpecError) as refused:
        read_spec(DOCUMENT | {"norm": {"eps": "a", "momentum": "b", "affine": "c", "placement": "d"}})

    paths = [problem.path for problem in refused.value.problems]
    assert paths == ["norm.eps", "norm.momentum", "norm.affine", "norm.placement"]
