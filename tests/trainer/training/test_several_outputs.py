"""Networks that return a dict, a dataclass or a tuple: a main output, and auxiliary losses with weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.data.loader import Batch
from syncnorm.trainer.training.tasks.main_output import main_output, named_outputs
from syncnorm.trainer.worker.model_inspection import inspect
from syncnorm.trainer.worker.module_and_data import assemble
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.own_tasks import TwoOutputs
from tests.helpers.trainer.ranks import train
from tests.trainer.training.test_named_parts import SCENES, per_position
from tests.trainer.training.test_tasks_on_two_ranks import job

A, B = torch.zeros(1), torch.ones(1)


@pytest.mark.parametrize(
    ("output", "main", "names"),
    [
        (A, A, ["out"]),
        ({"aux": B, "out": A}, A, ["out", "aux"]),
        ({"loss": B, "logits": A}, A, ["logits", "loss"]),
        ({"masks": A, "boxes": B}, A, ["masks", "boxes"]),
        ((A, B), A, ["0", "1"]),
        ([None, A], A, ["1"]),
        (TwoOutputs(A, B), A, ["out", "aux"]),
    ],
)
def test_main_output_is_named_out_or_logits_or_is_the_first(output: Any, main: Tensor, names: list[str]) -> None:
    assert main_output(output) is main
    assert list(named_outputs(output)) == names


@pytest.mark.parametrize(("output", "got"), [({"shape": (1,)}, "dict of shape"), (None, "NoneType")])
def test_an_output_without_a_tensor_is_refused(output: Any, got: str) -> None:
    with pytest.raises(ValueError, match=f"model must return a tensor, or a dict, .* got a {got}"):
        main_output(output)


def two_outputs(gives: str, aux: dict[str, float]) -> dict[str, Any]:
    found = per_position(aux_weights=aux)
    found["model"]["init_args"]["gives"] = gives
    return found


@pytest.mark.parametrize(
    ("gives", "aux"), [("dict", "aux"), ("logits", "aux"), ("tuple", "1"), ("dataclass", "aux"), ("in training", "aux")]
)
def test_two_workers_with_auxiliary_losses_equal_one(ranks: Pool, tmp_path: Path, gives: str, aux: str) -> None:
    model = two_outputs(gives, {aux: 0.4})
    two = ranks.run(train, 2, str(tmp_path / "two"), job(2, SCENES, **model))[0]
    one = ranks.run(train, 1, str(tmp_path / "one"), job(1, SCENES, **model))[0]
    plain = ranks.run(train, 1, str(tmp_path / "plain"), job(1, SCENES, **two_outputs(gives, {})))[0]

    for path, tensor in one.state.items():
        torch.testing.assert_close(two.state[path], tensor, rtol=1e-9, atol=1e-9)  # fp64
    assert two.metrics["val/mean_iou"] == pytest.approx(one.metrics["val/mean_iou"], rel=1e-6)
    assert not torch.allclose(one.state["aux_head.weight"], plain.state["aux_head.weight"])
    # The auxiliary loss is about as large as the main one; it counts in training alone.
    assert 1.2 < one.metrics["train/loss"] / one.metrics["val/loss"] < 1.6


@pytest.mark.parametrize(("gives", "known"), [("dict", "aux"), ("tensor", "none besides out, the main one")])
def test_a_weight_for_no_output_is_refused_with_the_names_there_are(gives: str, known: str) -> None:
    module = assemble(read_spec(job(1, SCENES, **two_outputs(gives, {"head": 0.4}))), 0, 1).module
    batch = Batch((torch.zeros(2, 1, 16, 16), torch.zeros(2, 16, 16, dtype=torch.int64)), 1.0)

    with pytest.raises(ValueError, match=f"model.aux_weights must name further outputs .* got 'head'; it has {known}"):
        module.training_step(batch, 0)


def test_plan_refuses_an_output_without_a_tensor() -> None:
    finding = inspect(read_spec(job(1, SCENES, **two_outputs("nothing", {})))).findings[0]

    assert finding.severity == "error"
    assert "model must return a tensor, or a dict, dataclass or tuple with one" in finding.message
