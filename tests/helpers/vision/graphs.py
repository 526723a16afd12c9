"""A graph network over loaders of torch_geometric, whose batches are objects that are neither tensors nor dicts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from torchmetrics import Accuracy


class InOrder(Sampler[int]):
    """One of a user's own, whose order holds on several workers, too."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __len__(self) -> int:
        return 16


def graphs(batch_size: int = 4, *, double: bool = False) -> Any:
    """Sixteen random graphs of 4 to 8 nodes to train on, eleven to validate on. double: in fp64, and always in the
    same order, however many workers there are."""
    from torch_geometric.data import Data
    from torch_geometric.data.lightning import LightningDataset

    generator = torch.Generator().manual_seed(0)

    def graph() -> Data:
        nodes = int(torch.randint(4, 9, (1,), generator=generator))
        return Data(
            x=torch.randn(nodes, 5, generator=generator, dtype=torch.float64 if double else torch.float32),
            edge_index=torch.randint(0, nodes, (2, 2 * nodes), generator=generator),
            y=torch.randint(0, 3, (1,), generator=generator),
        )

    train, val = ([graph() for _ in range(count)] for count in (16, 11))
    return LightningDataset(train, val, batch_size=batch_size, sampler=InOrder() if double else None)


class GraphNet(pl.LightningModule):
    """Names a class for each graph."""

    def __init__(self) -> None:
        super().__init__()
        from torch_geometric.nn import BatchNorm, GCNConv, GraphNorm

        self.first, self.of_nodes = GCNConv(5, 16), BatchNorm(16)
        self.second, self.of_graphs = GCNConv(16, 16), GraphNorm(16)
        self.head = nn.Linear(16, 3)
        self.accuracy = Accuracy(task="multiclass", num_classes=3)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Any:
        from torch_geometric.nn import global_mean_pool

        x = self.of_nodes(self.first(x, edge_index)).relu()
        x = self.of_graphs(self.second(x, edge_index), batch).relu()
        return self.head(global_mean_pool(x, batch))

    def training_step(self, data: Any, index: int) -> Any:
        loss = nn.functional.cross_entropy(self(data.x, data.edge_index, data.batch), data.y)
        self.log("train_loss", loss, batch_size=data.num_graphs)
        return loss

    def validation_step(self, data: Any, index: int) -> None:
        self.accuracy(self(data.x, data.edge_index, data.batch), data.y)
        self.log("val_acc", self.accuracy, batch_size=data.num_graphs)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)
