"""Segmentation of volumes with MONAI: dict transforms, patches, Dice, and sliding windows in validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import nibabel
import numpy as np
import torch
from counted_hooks import Telling
from monai.data import CacheDataset, DataLoader, list_data_collate
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    RandCropByPosNegLabeld,
    ScaleIntensityd,
)

KEYS = ["image", "label"]


def write_volumes(root: Path, count: int) -> None:
    """A bright cube in noise, in NIfTI files."""
    root.mkdir(parents=True)
    for number in range(count):
        generator = np.random.default_rng(number)
        label = np.zeros((24, 24, 24), "uint8")
        start = 4 + number % 3
        label[start : start + 8, 6:14, 6:14] = 1
        image = generator.random(label.shape).astype("float32") + label
        for name, values in (("image", image), ("label", label)):
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), root / f"{name}_{number}.nii.gz")


class Scans(pl.LightningDataModule):
    """The first `training` volumes in patches, the others whole."""

    def __init__(self, root: str, training: int = 4, patch: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        size, training = (self.hparams["patch"],) * 3, self.hparams["training"]
        paths = sorted(Path(self.hparams["root"]).glob("image_*"))
        files = [{"image": str(path), "label": str(path).replace("image_", "label_")} for path in paths]
        read = [LoadImaged(KEYS), EnsureChannelFirstd(KEYS), ScaleIntensityd("image")]
        cut = RandCropByPosNegLabeld(KEYS, "label", size, pos=1, neg=1, num_samples=2)
        self.train = CacheDataset(files[:training], Compose([*read, cut]), progress=False)
        self.val = CacheDataset(files[training:], Compose(read), progress=False)

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, 1, shuffle=True, collate_fn=list_data_collate)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val, 1)


class Segmenter(Telling):
    def __init__(self, patch: int = 16) -> None:
        super().__init__()
        self.patch = (patch,) * 3
        self.net = UNet(
            spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,), num_res_units=1, norm="BATCH"
        )
        self.loss = DiceCELoss(to_onehot_y=True, softmax=True)
        self.dice = DiceMetric(include_background=False)

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(self(batch["image"]), batch["label"])
        self.log("train_loss", loss)
        self.noted["volumes"] = self.noted.get("volumes", 0) + 1
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        scores = sliding_window_inference(batch["image"], self.patch, 2, self.forward)
        self.dice(scores.argmax(1, keepdim=True), batch["label"])

    def on_validation_epoch_end(self) -> None:
        self.log("val_dice", self.dice.aggregate().item())
        self.dice.reset()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-2)
