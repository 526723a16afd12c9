"""A built-in data set as a LightningDataModule, for a LightningModule of the user's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from syncnorm.trainer.data.info import Data, Source


class NamedData(LightningDataModule):
    """Batches are (x, y). num_classes: of the data."""

    def __init__(self, data: Data, batch_size: int) -> None:
        super().__init__()
        self.data = data
        self._batch_size = batch_size
        self.num_classes = data.info.num_classes

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(_Augmented(self.data.train), self._batch_size, shuffle=self.data.shuffle)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.data.val, self.data.val_batch_size or self._batch_size, shuffle=False)

    def _loader(self, samples: Dataset[Any], batch_size: int, *, shuffle: bool) -> DataLoader[Any]:
        return DataLoader(
            samples,
            batch_size,
            shuffle=shuffle,
            collate_fn=self.data.collate,
            num_workers=self.data.num_workers,
        )


class _Augmented(Dataset[Any]):
    """Training samples, changed at random where their source does so. The numbers come from torch's generator, which a
    checkpoint holds."""

    def __init__(self, samples: Dataset[Any]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        if isinstance(self._samples, Source) and self._samples.augments:
            return self._samples.read(index, np.random.default_rng(int(torch.randint(2**62, ()))))
        return self._samples[index]
