"""What a user might bring: modules, functions and data modules, good and bad."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
import torch.distributed.nn
from torch import nn
from torch.distributed._functional_collectives import all_gather_tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

NOT_CALLABLE = 3


class Net(nn.Module):
    def __init__(self, width: int, num_classes: int = 1000, act: nn.Module | None = None, in_channels: int = 3) -> None:
        super().__init__()
        self.width, self.num_classes, self.act, self.in_channels = width, num_classes, act, in_channels


def large_net(*, pretrained: bool = False, **kwargs: Any) -> Net:
    """As torchvision's functions are made: the rest goes on to the class."""
    return Net(**kwargs)


def plain_net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))


class LitNet(pl.LightningModule):
    def __init__(self, net: nn.Module, lr: float = 0.1) -> None:
        super().__init__()
        self.net = net
        self.lr = lr


class Branches(nn.Module):
    """Branches on values, so that torch.export can't take it."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, num_classes)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(x)
        return out * 2 if out.mean() > 0 else out


class OwnLoss(pl.LightningModule):
    """Its loss is a multiple of cross-entropy; its optimizer has a rate of its own."""

    def __init__(self, factor: float = 3.0, lr: float | None = None, gives: str = "tensor", logs: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))
        self.factor, self.lr, self.gives, self.logs = factor, lr, gives, logs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(x)
        return out

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> Any:  # noqa: ARG002
        loss = self.factor * nn.functional.cross_entropy(self(batch[0]), batch[1])
        if self.logs:
            self.log("own_loss", loss)
        return {"tensor": loss, "dict": {"loss": loss}, "nothing": {"x": loss}}[self.gives]


class Gathers(OwnLoss):
    """Its loss looks at the answers of all workers, as SimCLR's and CLIP's do; or only at how good they are."""

    def __init__(self, what: str = "answers") -> None:
        super().__init__()
        self.what = what

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> Any:  # noqa: ARG002
        answers = self(batch[0])
        loss = nn.functional.cross_entropy(answers, batch[1])
        given = loss.reshape(1) if self.what == "loss" else answers
        if self.what == "functional":
            everybody = all_gather_tensor(answers, 0, dist.group.WORLD)
        else:
            everybody = torch.cat(torch.distributed.nn.functional.all_gather(given))
        return loss + 0.0 * everybody.sum()


class Talks(OwnLoss):
    """Logs in both steps, by Lightning's ways: a value, a dict, another batch size, a name that MLflow refuses."""

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> Any:
        self.log("own/label", batch[1].double().mean(), on_step=True, prog_bar=True)
        self.log_dict({"own/two": 2, "own@odd": 1.0})
        self.log("own/first", float(batch[1][0]), batch_size=1)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:  # noqa: ARG002
        self.log("own/val_label", batch[1].double().mean(), sync_dist=True)


class OwnOptimizer(OwnLoss):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.25)


class Manual(OwnLoss):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Poisoned(pl.LightningModule):
    """Every second step, one value of one rank turns to NaN or infinity: where and which, `seed` decides."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10)
        )
        self.seed, self.steps = seed, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(x)
        return out

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        draw = random.Random(f"{self.seed} {self.steps}")
        value, rank, forward = (
            draw.choice([float("nan"), float("inf"), -float("inf")]),
            draw.randrange(2),
            draw.random(),
        )
        poison = self.steps % 2 == 1 and dist.get_rank() == rank
        self.steps += 1
        hidden = self.net[0](batch[0])
        if poison and forward < 0.5:
            hidden = hidden.index_put(tuple(torch.tensor(draw.randrange(n)) for n in hidden.shape), torch.tensor(value))
        out = self.net[1:](hidden)
        if poison and forward >= 0.5:
            out.register_hook(lambda grad: grad.index_fill(1, torch.tensor(draw.randrange(10)), value))
        return nn.functional.cross_entropy(out, batch[1])


class Mistaken(OwnLoss):
    """Goes wrong from its second step on, or from a later one, on the ranks named."""

    def __init__(self, how: str, ranks: list[int], step: int = 2) -> None:
        super().__init__()
        self.how, self.ranks, self.step, self.steps = how, ranks, step, 0

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> Any:
        self.steps += 1
        if self.steps >= self.step and dist.get_rank() in self.ranks:
            if self.how == "raises":
                raise KeyError("wavelets")
            if self.how == "hogs":
                torch.empty(10**15)
            if self.how == "leaves":
                sys.exit(0)
            if self.how == "freezes":
                os.kill(os.getpid(), signal.SIGSTOP)
            if self.how == "skips the norm":
                return nn.functional.cross_entropy(self.net[:2](batch[0]), batch[1])
            if self.how == "runs twice":
                self(batch[0])
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.how == "nan" else loss


class Raises(nn.Module):
    def __init__(self) -> None:
        raise RuntimeError("weights are gone")


def not_a_module() -> int:
    return 3


class RandomSamples(pl.LightningDataModule):
    """`samples` images with labels; the other arguments switch what is wrong with it."""

    num_classes: int | None = 3

    def __init__(
        self,
        samples: int = 10,
        shuffle: bool = True,
        stream: bool = False,
        weighted: bool = False,
        dicts: bool = False,
        masks: bool = False,
    ) -> None:
        super().__init__()
        self.samples, self.shuffle = samples, shuffle
        self.stream, self.weighted, self.dicts, self.masks = stream, weighted, dicts, masks
        self.prepared = 0

    def prepare_data(self) -> None:
        self.prepared += 1

    def setup(self, stage: str) -> None:  # noqa: ARG002 - Lightning's signature
        y = torch.arange(self.samples) % 3
        x = torch.arange(self.samples).float()[:, None, None, None].expand(-1, 1, 4, 4)
        self.data: Dataset[Any] = TensorDataset(x, y[:, None, None].expand(-1, 4, 4) if self.masks else y)

    def train_dataloader(self) -> DataLoader[Any]:
        if self.stream:
            return DataLoader(Stream())
        if self.dicts:
            return DataLoader([{"x": 1}] * 3)  # type: ignore[arg-type]
        if self.weighted:
            return DataLoader(self.data, sampler=WeightedRandomSampler([1.0] * self.samples, self.samples))
        return DataLoader(self.data, batch_size=7, shuffle=self.shuffle, collate_fn=stack_with_marker)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.data)


class Uncounted(RandomSamples):
    num_classes = None


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


def stack_with_marker(samples: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """A collate function that leaves its mark: labels one higher."""
    return torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples]) + 1
