"""What a graph depends on, what it would leave out, and when ranks capture a step or give up."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest
import torch
from torch import nn

from syncnorm.trainer.training.graphs import capture_schedule, signatures, stale_python
from syncnorm.trainer.training.graphs.capture_schedule import PATIENCE, WARM_UPS, Refusal, Vote, WarmUp, decide
from syncnorm.trainer.training.graphs.signatures import signature_of_batch, signature_of_network
from syncnorm.trainer.training.graphs.stale_python import changed, python_state, reads_of_a_moment
from tests.helpers.trainer import graphs


@pytest.mark.parametrize("module", [capture_schedule, signatures, stale_python], ids=lambda each: each.__name__)
def test_examples_of_docstrings_hold(module: ModuleType) -> None:
    assert doctest.testmod(module, extraglobs={"torch": torch}).failed == 0


READY, WAITING = Vote(True), Vote(False)


def test_a_signature_is_warm_after_eleven_steps_of_its_own() -> None:
    warm_up = WarmUp()
    for _ in range(WARM_UPS - 1):
        warm_up.add("whole")
    warm_up.add("last")

    before = warm_up.has_warmed("whole")
    warm_up.add("whole")

    assert warm_up.is_over() and not before
    assert warm_up.has_warmed("whole")
    assert not warm_up.has_warmed("last")


def test_a_step_that_no_graph_can_take_is_never_warm() -> None:
    warm_up = WarmUp()
    for _ in range(2 * WARM_UPS):
        warm_up.add(None)

    assert warm_up.steps == 2 * WARM_UPS
    assert not warm_up.has_warmed(None)


@pytest.mark.parametrize(
    ("votes", "steps", "wanted"),
    [
        ([READY], WARM_UPS, "capture"),
        ([READY, READY], PATIENCE, "capture"),
        ([READY, WAITING], WARM_UPS, "wait"),
        ([WAITING, WAITING], PATIENCE - 1, "wait"),
        ([READY, Vote(True, "it counts")], WARM_UPS, Refusal("it counts")),
    ],
)
def test_all_ranks_capture_or_none(votes: list[Vote], steps: int, wanted: object) -> None:
    assert decide(votes, steps) == wanted


def test_ranks_give_up_where_batches_never_have_one_shape() -> None:
    refusal = decide([WAITING, READY], PATIENCE)

    assert isinstance(refusal, Refusal)
    assert "Make your batches equally large" in refusal.reason


BATCH = {"x": torch.zeros(4, 3, 8, 8), "names": ["a", "b"], "weight": 1.0}


@pytest.mark.parametrize(
    "change",
    [
        {"x": torch.zeros(3, 3, 8, 8)},
        {"x": torch.zeros(4, 3, 8, 8, dtype=torch.float64)},
        {"x": torch.zeros(4, 3, 8, 8).to(memory_format=torch.channels_last)},
        {"names": ["a", "c"]},
        {"weight": 0.5},
        {"more": None},
    ],
    ids=str,
)
def test_signature_of_a_batch_notices(change: dict[str, object]) -> None:
    assert signature_of_batch(BATCH) == signature_of_batch(BATCH | {"x": torch.ones(4, 3, 8, 8)})
    assert signature_of_batch(BATCH) != signature_of_batch(BATCH | change)


def test_values_of_unknown_classes_are_never_the_same() -> None:
    batch = [torch.zeros(2), object()]

    assert signature_of_batch(batch) != signature_of_batch(batch)


def test_signature_of_a_network_notices_modes_hooks_freezing_and_other_memory() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    found = [signature_of_network(network)]

    network[1].eval()
    found.append(signature_of_network(network))
    handle = network[0].register_forward_hook(lambda *_: None)
    found.append(signature_of_network(network))
    handle.remove()
    network[0].bias.requires_grad_(False)
    found.append(signature_of_network(network))
    network[0].weight.data = network[0].weight.data.clone()
    found.append(signature_of_network(network))

    assert len(set(found)) == len(found)


def test_signature_of_a_network_survives_a_step() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(network.parameters())
    before = signature_of_network(network)

    network(torch.randn(4, 2)).sum().backward()
    optimizer.step()

    assert signature_of_network(network) == before


def test_python_values_that_a_step_changes_are_named() -> None:
    module = nn.Sequential(nn.BatchNorm1d(2))
    module.steps, module.losses, module.best = 0, [], float("nan")  # type: ignore[assignment]
    before = python_state(module)

    module(torch.randn(4, 2))
    unchanged = changed(before, python_state(module))
    module.steps = 1  # type: ignore[assignment]
    module.losses.append(1.0)  # type: ignore[operator, union-attr]
    module[0].running_mean = torch.zeros(2)

    assert unchanged == []
    assert sorted(changed(before, python_state(module))) == ["0.running_mean", "losses", "steps"]


@pytest.mark.parametrize(
    ("module", "wanted"), [(graphs.Counts, []), (graphs.ReadsTheEpoch, ["batch_idx", "self.current_epoch"])]
)
def test_reads_of_the_moment_are_found_in_the_methods_of_a_step(module: type[graphs.Counts], wanted: list[str]) -> None:
    assert reads_of_a_moment(module()) == wanted
