"""Text and values of user code, made fit for JSON and both databases."""

import doctest
import json

import numpy as np
import pytest

from syncnorm.trainer.contract import text
from syncnorm.trainer.contract.text import storable, storable_json


def test_examples_of_the_docstrings_hold():
    assert doctest.testmod(text).failed == 0


@pytest.mark.parametrize("raw", ["a\x00b", "\udce9", "ok \ud83d alone", "\ude00\ud83d"])
def test_what_no_database_takes_is_replaced(raw):
    clean = storable(raw)

    assert "\x00" not in clean
    clean.encode()  # raises on a lone surrogate
    assert "\N{REPLACEMENT CHARACTER}" in clean


def test_good_text_stays_as_it_is():
    assert storable("naïve 😀 \t\n") == "naïve 😀 \t\n"


@pytest.mark.parametrize("limit", [0, 1, 10, 40, 99])
def test_long_text_is_cut_to_the_limit(limit):
    assert len(storable("x" * 100, limit)) == limit


def test_odd_values_become_json():
    class Bad:
        def __str__(self) -> str:
            raise RuntimeError("no")

    value = {"n": np.float32(0.5), "inf": float("-inf"), "bad": Bad(), "deep": [[[["x"]]]], b"k": ValueError("\x00")}

    clean = storable_json(value, depth=3)

    json.dumps(clean, allow_nan=False)
    assert clean["n"] == 0.5
    assert clean["inf"] == "-Infinity"
    assert clean["bad"] == "<Bad that has no text>"


def test_a_value_that_contains_itself_ends():
    circle: list[object] = []
    circle.append(circle)

    json.dumps(storable_json(circle), allow_nan=False)
