"""What is promised for each kind of loader."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset, WeightedRandomSampler

from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.data.user.shared_loader import Workers, share
from syncnorm.trainer.worker.findings.guarantees import equals_one_device, resumes_exactly
from syncnorm.trainer.worker.module_and_data import assemble
from tests.helpers.trainer import own_modules
from tests.helpers.trainer.own_module_jobs import job

POINTS = TensorDataset(torch.randn(10, 4), torch.arange(10) % 3)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(POINTS)


class KeepsPlace(DataLoader[Any]):
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class NoDataLoader(list[Any]):
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Own(Sampler[int]):
    def __len__(self) -> int:
        return 10

    def __iter__(self) -> Any:
        return iter(range(10))


def shared(loader: Any) -> Any:
    return share(loader, Workers(0, 2, seed=0, of_job=2), training=True, epoch=lambda: 0)


@pytest.mark.parametrize(
    ("loader", "holds", "says"),
    [
        (lambda: DataLoader(POINTS, 2, shuffle=True), "yes", "continue where they were"),
        (
            lambda: DataLoader(POINTS, 2, sampler=WeightedRandomSampler([1.0] * 10, 10)),
            "yes",
            "continue where they were",
        ),
        (lambda: DataLoader(POINTS, 2, num_workers=1), "partly", "its data-loading processes draw at random"),
        (lambda: DataLoader(POINTS, 2, sampler=Own()), "partly", "unless the sampler keeps a state of its own"),
        (lambda: DataLoader(Stream(), 2), "partly", "your Stream can't be read from the middle"),
        (lambda: [1, 2, 3], "partly", "your list can't be read from the middle"),
        (lambda: NoDataLoader([1, 2, 3]), "yes", "continues by its state_dict"),
        (lambda: KeepsPlace(Stream(), 2), "yes", "continues by its state_dict"),
        (lambda: KeepsPlace(Stream(), 2, num_workers=2), "partly", "its data-loading processes draw at random"),
    ],
)
def test_exact_resume_is_promised_where_the_loader_can_do_it(loader: Any, holds: str, says: str) -> None:
    promise = resumes_exactly(shared(loader()))

    assert promise.holds == holds
    assert says in promise.why


def test_built_in_task_is_promised_both() -> None:
    document = {
        "name": "x",
        "model": {"name": "cnn"},
        "data": {"name": "digits", "batch_size": 32},
        "resources": {"workers": 2},
    }
    assembly = assemble(spec := read_spec(document), 0, 2)
    assert assembly.task_data is not None
    loader = assembly.task_data.train_dataloader()

    assert resumes_exactly(loader).holds == "yes"
    assert equals_one_device(assembly.module, loader, spec).holds == "yes"


@pytest.mark.parametrize(
    ("loader", "norm", "holds", "says"),
    [
        (lambda: DataLoader(POINTS, 5), "sync_batch", "yes", "whose loss is a mean over its samples"),
        (
            lambda: DataLoader(POINTS, 5),
            "batch",
            "no",
            "batch takes its statistics from the samples of each worker alone",
        ),
        (
            lambda: DataLoader(TensorDataset(torch.randn(11, 4)), 5),
            "sync_batch",
            "partly",
            "1 sample of an epoch is repeated",
        ),
        (lambda: DataLoader(Stream(), 5), "sync_batch", "no", "every worker reads its IterableDataset by itself"),
    ],
)
def test_one_device_is_promised_where_the_workers_share_samples_and_statistics(
    loader: Any, norm: str, holds: str, says: str
) -> None:
    module = own_modules.BuiltLate()
    module.configure_model()

    promise = equals_one_device(module, shared(loader()), read_spec(job("BuiltLate", workers=2, norm={"kind": norm})))

    assert promise.holds == holds, promise.why
    assert says in promise.why


def test_detector_in_a_module_of_yours_is_not_promised_to_equal_one_device() -> None:
    """Its losses are means over what each worker samples, which only a detector named in the job has weighted."""
    detection = pytest.importorskip("torchvision.models.detection")
    module = own_modules.BuiltLate()
    module.configure_model()
    module.detector = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)

    promise = equals_one_device(
        module, shared(DataLoader(POINTS, 5)), read_spec(job("BuiltLate", workers=2, norm={"kind": "group"}))
    )

    assert promise.holds == "partly"
    assert "means over the anchors and boxes that each worker samples" in promise.why
