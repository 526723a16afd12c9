"""Which combinations of parameters the short form of a test tries."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest


def each_value(*axes: Sequence[Any]) -> list[Any]:
    """All combinations for `parametrize`. The short form tries every value of every axis, the long form all of them."""
    short = {tuple(number % len(axis) for axis in axes) for number in range(max(map(len, axes)))}
    return [
        pytest.param(
            *(axis[i] for axis, i in zip(axes, chosen, strict=True)),
            marks=() if chosen in short else pytest.mark.chaos,
        )
        for chosen in product(*(range(len(axis)) for axis in axes))
    ]
