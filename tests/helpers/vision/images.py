"""Data modules of images: in folders, with samplers, in dicts, triples and streams, with and without validation."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, WeightedRandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder


class Folder(pl.LightningDataModule):
    num_classes = 10

    def __init__(self, root: str, batch_size: int = 4, workers: int = 0, weighted: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        read, root = transforms.ToTensor(), self.hparams["root"]
        self.train, self.val = ImageFolder(f"{root}/train", read), ImageFolder(f"{root}/val", read)

    def train_dataloader(self) -> Any:
        size, workers = self.hparams["batch_size"], self.hparams["workers"]
        if self.hparams["weighted"]:
            sampler = WeightedRandomSampler(torch.ones(len(self.train)).tolist(), len(self.train))
            return DataLoader(self.train, size, sampler=sampler, num_workers=workers)
        return DataLoader(
            self.train, size, shuffle=True, num_workers=workers, persistent_workers=workers > 0, drop_last=True
        )

    def val_dataloader(self) -> Any:
        return DataLoader(self.val, self.hparams["batch_size"])


class FolderWithTwoValidations(Folder):
    def val_dataloader(self) -> Any:
        return [DataLoader(self.val, 4), DataLoader(self.val, 3)]


class Images(Dataset[Any]):
    """(image, label) drawn from the index."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        generator = torch.Generator().manual_seed(index)
        return torch.randn(3, 32, 32, generator=generator) + index % 10, index % 10


class Pairs(pl.LightningDataModule):
    """Without validation."""

    num_classes = 10
    dataset: Any = Images

    def train_dataloader(self) -> Any:
        return DataLoader(self.dataset(40), 4, shuffle=True)


class _Named(Images):
    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return {"image": image, "label": label}


class Named(Pairs):
    dataset = _Named


class _Numbered(Images):
    def __getitem__(self, index: int) -> Any:
        return *super().__getitem__(index), index


class Triples(Pairs):
    dataset = _Numbered


class _Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(Images(40)[index] for index in range(40))


class Streamed(Pairs):
    def train_dataloader(self) -> Any:
        return DataLoader(_Stream(), 4)
