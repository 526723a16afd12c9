from __future__ import annotations

from typing import Any

import pytest
import torch

from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.user_code.raised_at import raised_at
from syncnorm.trainer.worker.model_inspection import inspect

CODE = """
import json
from urllib.request import urlopen

def own(_):
    raise ValueError("of their own")

def of_python(_):
    return json.loads("{")

def of_torch(torch):
    return torch.ones(2, 3) @ torch.ones(2, 3)

def deeper(torch):
    def inner():
        return torch.nn.Linear(2, 2)(torch.ones(1, 3))
    return inner()
"""


@pytest.mark.parametrize(
    ("function", "place"),
    [
        ("own", "theirs.data, line 6, in own"),
        ("of_python", "theirs.data, line 9, in of_python"),
        ("of_torch", "theirs.data, line 12, in of_torch"),
        ("deeper", "theirs.data, line 16, in inner"),
    ],
)
def test_innermost_line_that_is_theirs_is_named(function: str, place: str) -> None:
    code: dict[str, Any] = {"__name__": "theirs.data"}
    exec(compile(CODE, "/a/path/of/this/host.py", "exec"), code)

    with pytest.raises(Exception) as raised:
        code[function](torch)

    # That of the test, which called it, lies further out.
    assert raised_at(raised.value) == place


class NeedsNetwork(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        raise OSError("Name or service not known")


def test_plan_names_the_place_in_the_code_that_failed() -> None:
    document = read_spec(
        {
            "name": "n",
            "model": {"class_path": f"{__name__}.NeedsNetwork"},
            "data": {"name": "digits", "batch_size": 2},
        }
    )

    (finding,) = inspect(document).findings

    assert finding.message == (
        "The network or its data can't be built as the spec says: OSError: Name or service not known "
        f"({__name__}, line {NeedsNetwork.__init__.__code__.co_firstlineno + 2}, in __init__)"
    )
