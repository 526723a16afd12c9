"""Every model with every kind trains on two ranks and comes out with a passing certificate, or is refused."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from syncnorm import norm
from syncnorm.trainer.export.certification import TrainedModel, export_and_compare
from syncnorm.trainer.export.forward_inputs import ForwardInputs
from syncnorm.trainer.export.statistics.population import population_statistics
from syncnorm.trainer.storage.attempt_layout import AttemptFolders
from syncnorm.trainer.training.task_module import network_of
from syncnorm.trainer.worker.fit import fit
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.ranks import RecordingReporter, build, launch_of, rank_context
from tests.trainer.models.test_models_with_kinds import MODELS, OPTIONS, REFUSED

# Each kind with a model, each model with a few kinds; the long form takes all of them.
SOME = [(list(MODELS)[index * 3 % len(MODELS)], kind) for index, kind in enumerate(norm.kinds())]
ALL = [(name, kind) for name in MODELS for kind in norm.kinds()]


def document(name: str, kind: str, formats: list[str]) -> dict[str, Any]:
    init_args, shape = MODELS[name]
    data: dict[str, Any] = {"name": "synthetic", "init_args": {"shape": list(shape), "samples": 16, "val_samples": 8}}
    if name.startswith("unet"):
        dims = len(shape) - 1
        data = {"name": "digit_scenes", "init_args": {"dims": dims, "size": shape[1], "scenes": 16, "val_scenes": 8}}
    return {
        "name": f"{name} {kind}",
        "model": {"name": name.split("-", maxsplit=1)[0], "init_args": init_args},
        "data": data | {"batch_size": 4},
        "norm": {"kind": kind, "options": OPTIONS.get(kind, {})},
        "optimizer": {"name": "adam", "lr": 0.001},
        "train": {"steps": 2},
        "resources": {"workers": 2},
        "export": {"formats": formats},
    }


def train_and_certify(rank: int, world_size: int, root: str, job: dict[str, Any]) -> list[dict[str, Any]]:
    """Two steps, population statistics, and on rank 0 the comparison of every runtime."""
    launch = launch_of(job)
    built = build(rank, world_size, launch)
    folders, reporter = AttemptFolders(Path(root)), RecordingReporter()
    fit(built, launch, folders, reporter, rank_context(rank, world_size))  # type: ignore[arg-type]
    assert built.task_data is not None
    network, data = network_of(built.module), built.task_data.data
    population_statistics(network, built.task_data.loaders.train, "pooled", torch.device("cpu"))
    if rank:
        return []
    held_out = [ForwardInputs((torch.stack([data.val[index][0] for index in range(8)]),))]
    trained = TrainedModel("j", network.eval(), held_out, {}, {}, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn about their own internals
        return [asdict(check) for check in export_and_compare(trained, launch.spec.export, folders.export).checks]


def assert_certified_or_refused(ranks: Pool, folder: Path, name: str, kind: str, formats: list[str]) -> None:
    job = document(name, kind, formats)
    if sentence := REFUSED.get((name, kind)):
        with pytest.raises(ValueError, match=sentence):
            ranks.run(train_and_certify, 2, str(folder), job)
        return

    checks = ranks.run(train_and_certify, 2, str(folder), job)[0]

    assert len(checks) == 2 * (1 + len(formats))
    assert [check for check in checks if not check["passed"]] == []


@pytest.mark.parametrize(("name", "kind"), SOME)
def test_model_and_kind_are_certified_or_refused(ranks: Pool, tmp_path: Path, name: str, kind: str) -> None:
    formats = ["pt2", "onnx"] if kind in ("sync_batch", "group") else ["pt2"]

    assert_certified_or_refused(ranks, tmp_path, name, kind, formats)


@pytest.mark.chaos
@pytest.mark.parametrize(("name", "kind"), ALL)
def test_every_model_and_kind_in_every_format(ranks: Pool, tmp_path: Path, name: str, kind: str) -> None:
    assert_certified_or_refused(ranks, tmp_path, name, kind, ["pt2", "onnx"])
