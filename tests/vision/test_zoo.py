"""Networks of other libraries with every kind: no exception but a refusal in a sentence, and no silent change."""

from __future__ import annotations

import re

import pytest

from syncnorm import norm
from tests.helpers.vision.zoo.architecture import Architecture
from tests.helpers.vision.zoo.catalogue import catalogue
from tests.helpers.vision.zoo.page import PAGE, row
from tests.helpers.vision.zoo.results import results_of


def listed() -> set[str]:
    """The networks on the page."""
    found, library = set[str](), ""
    for line in PAGE.read_text(encoding="utf-8").partition("## Refusals")[0].splitlines():
        if line.startswith("## "):
            library = line.split()[1]
        elif library and (cells := re.match(r"\| ([^|]+) \| \d+ of \d+ \|", line)):
            found.add(f"{library}/{cells[1]}")
    return found


ZOO = {one.key: (number, one) for number, one in enumerate(catalogue())}
LISTED = listed()
SHARE = (
    "torchvision/VGG",
    "torchvision/Faster R-CNN, heads",
    "timm/test_efficientnet",
    "MONAI/UNet, 3-D",
    "MONAI/SegResNet, batch",
    "transformers/Bit",
    "transformers/ResNet",
    "ultralytics/C2f",
)
KINDS_OF_SHARE = ("sync_batch", "group", "evo_s0", "weight_standardization", "selu", "none")
NOISE = ("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
pytestmark = [pytest.mark.filterwarnings(warning) for warning in NOISE]


def installed(key: str) -> tuple[int, Architecture]:
    """The network and its number; skips where its library is missing, as ultralytics is in CI."""
    library = key.partition("/")[0]
    if not any(name.startswith(f"{library}/") for name in ZOO):
        pytest.skip(f"{library} is not installed")
    return ZOO[key]


@pytest.mark.parametrize("key", SHARE)
def test_network_is_converted_without_a_fault(key: str) -> None:
    number, one = installed(key)

    found = list(results_of(one, number, KINDS_OF_SHARE))

    assert [(result.kind, fault) for result in found for fault in result.faults] == []
    assert {result.kind for result in found if result.effect not in ("none", "refused")}


@pytest.mark.chaos
@pytest.mark.parametrize("key", sorted(LISTED | ZOO.keys()))
def test_network_is_as_the_page_says_with_every_kind(key: str) -> None:
    number, one = installed(key)

    found = {result.kind: result for result in results_of(one, number)}

    assert [(result.kind, fault) for result in found.values() for fault in result.faults] == []
    assert found.keys() == norm.kinds().keys()
    if key in LISTED:
        assert row(found) in PAGE.read_text(encoding="utf-8").splitlines()


def test_zoo_has_at_least_a_hundred_networks() -> None:
    assert len(ZOO) >= 100
