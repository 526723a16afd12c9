"""Data for LightningModules of other projects, and the modules themselves where they take objects, not values."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Drawn(Dataset[Any]):
    """Samples in the form that a project asks for, drawn from their index."""

    def __init__(self, form: str, count: int) -> None:
        self.form, self.count = form, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        generator = torch.Generator().manual_seed(index)
        image = torch.rand(3, 32, 32, generator=generator)
        label = index % 4
        forms: dict[str, Any] = {
            "pair": (image, label),
            "labelled": {"image": image, "label": torch.tensor(label)},
            "valued": {"image": image, "label": image.mean().view(1)},
            "masked": {"image": image, "mask": (image[0] > 0.5).long()},
            "boxed": {
                "image": image,
                "bbox_xyxy": torch.tensor([[4.0, 4.0, 20.0, 20.0 + label]]),
                "label": torch.tensor([1]),
            },
        }
        return forms[self.form]


def boxes_in_lists(samples: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {key: [sample[key] for sample in samples] for key in samples[0]}
    return found | {"image": torch.stack(found["image"])}


class DrawnData(pl.LightningDataModule):
    def __init__(self, form: str, samples: int = 18, batch_size: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()

    def _loader(self, shuffle: bool) -> DataLoader[Any]:
        form, samples, size = (self.hparams[name] for name in ("form", "samples", "batch_size"))
        collate = boxes_in_lists if form == "boxed" else None
        return DataLoader(Drawn(form, samples), size, shuffle=shuffle, collate_fn=collate)

    def train_dataloader(self) -> Any:
        return self._loader(True)

    def val_dataloader(self) -> Any:
        return self._loader(False)


def uncertain_classifier() -> Any:
    """Of torch-uncertainty, which takes a network and a function for its optimizer."""
    from torch_uncertainty.routines import ClassificationRoutine

    network = nn.Sequential(_features(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    return ClassificationRoutine(network, 4, nn.CrossEntropyLoss(), optim_recipe=optimizer)


def linear_classifier() -> Any:
    """Of lightly, which takes a network whose features stay as they are."""
    from lightly.utils.benchmarking import LinearClassifier

    return LinearClassifier(_features(), batch_size_per_device=4, feature_dim=8, num_classes=4, topk=(1, 2))


def finetuned_classifier() -> Any:
    """Of lightly, which trains the network, too."""
    from lightly.utils.benchmarking import FinetuneClassifier

    return FinetuneClassifier(_features(), batch_size_per_device=4, feature_dim=8, num_classes=4, topk=(1, 2))


def _features() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers)
