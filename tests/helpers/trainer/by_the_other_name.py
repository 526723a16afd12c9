"""A LightningModule with data and a callback, by the habits of tutorials that import pytorch_lightning."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split


class LitClassifier(pl.LightningModule):
    def __init__(self, hidden_dim: int = 32, learning_rate: float = 1e-2) -> None:  # noqa: ARG002
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(
            nn.Linear(8, hidden_dim), nn.BatchNorm1d(hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        self.say(f"batch {batch_idx}")
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y), sync_dist=True)

    @rank_zero_only
    def say(self, text: str) -> None:
        self.said = text

    def configure_callbacks(self) -> list[pl.Callback]:
        return [EarlyStopping("val_loss", patience=50)]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["learning_rate"])


class PointsDataModule(pl.LightningDataModule):
    def __init__(self, batch_size: int = 16) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002
        x = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
        whole = TensorDataset(x, (x.sum(1) > 0).long())
        self.train_set, self.val_set = random_split(whole, [64, 32], torch.Generator().manual_seed(0))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train_set, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val_set, self.batch_size)


def cli_main() -> None:
    args = ArgumentParser().parse_args()
    trainer = pl.Trainer(logger=TensorBoardLogger("logs"), **vars(args))
    trainer.fit(LitClassifier(), datamodule=PointsDataModule())


if __name__ == "__main__":
    cli_main()
