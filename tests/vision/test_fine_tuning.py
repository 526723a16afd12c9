"""Networks of torchvision and timm, trained on MNIST, get another head and are tuned on 90 other digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.ranks import train_many
from tests.helpers.vision.digits import mnist

MODELS: dict[str, dict[str, Any]] = {
    "torchvision": {"class_path": "torchvision.models.resnet18"},
    "timm": {"name": "timm/resnet18"},
}
SEEDS = (0, 1, 2)
STEM = ["conv1", "bn1", "layer?"]


def pretrain(_rank: int, _world_size: int, library: str, file: str) -> None:
    """Some steps of plain PyTorch on MNIST; torchvision's weights in a file of torch, timm's in one of safetensors."""
    import timm
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.resnet18() if library == "torchvision" else timm.create_model("resnet18")
    x, y = mnist(2000)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for chosen in torch.arange(2000).split(40):
        optimizer.zero_grad()
        F.cross_entropy(network(x[chosen]), y[chosen]).backward()
        optimizer.step()
    if library == "torchvision":
        torch.save({"state_dict": network.state_dict(), "epoch": 1}, file)
    else:
        save_file(network.state_dict(), file)


def job(model: dict[str, Any], seed: int, **train: Any) -> dict[str, Any]:
    return {
        "name": "tuned",
        "seed": seed,
        "model": model,
        "data": {"class_path": "tests.helpers.vision.digits.Digits", "init_args": {"seed": seed}},
        "norm": {"kind": "batch"},
        "optimizer": {"name": "sgd", "lr": 0.02, "momentum": 0.9},
        "train": {"epochs": 4, "checkpoint_every": {"epochs": 9}, **train},
    }


def tuned(model: dict[str, Any], seed: int, file: str) -> dict[str, Any]:
    """A new head on the frozen backbone first, then all of it at a lower rate, with an average of the weights."""
    part = {"init_from": {"file": file, "drop": ["fc.*"]}}
    part["freeze"] = [{"match": name, "unfreeze_at": {"epochs": 1}} for name in STEM]  # type: ignore[assignment]
    found = job(model | part, seed, average={"kind": "ema", "decay": 0.8})
    found["optimizer"]["groups"] = [{"match": "fc", "lr_factor": 1.0}, {"match": "*", "lr_factor": 0.5}]
    return found


@pytest.mark.parametrize("library", MODELS)
def test_tuning_from_a_file_beats_training_from_nothing(library: str, ranks: Pool, tmp_path: Path) -> None:
    file = str(tmp_path / "weights")
    ranks.run(pretrain, 1, library, file)
    jobs = [tuned(MODELS[library], seed, file) for seed in SEEDS] + [job(MODELS[library], seed) for seed in SEEDS]

    found = ranks.run(train_many, 1, [str(tmp_path / str(number)) for number in range(len(jobs))], jobs)[0]

    accuracies = [scores["val/accuracy"] for scores in found]
    from_file, from_nothing = accuracies[: len(SEEDS)], accuracies[len(SEEDS) :]
    print(f"{library}: from the file {from_file}, from nothing {from_nothing}")
    assert all(tuned > new + 0.1 for tuned, new in zip(from_file, from_nothing, strict=True))
