"""LightningModules and data modules as people write them, which note what is called."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, StochasticWeightAveraging
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)
from torchmetrics import MeanMetric
from torchmetrics.retrieval import RetrievalMRR

HOOKS = [
    name
    for name in dir(pl.core.hooks.ModelHooks) + dir(pl.core.hooks.DataHooks) + dir(pl.core.hooks.CheckpointHooks)
    if name.startswith(("on_", "transfer_", "setup", "teardown", "configure_", "prepare_data"))
] + ["optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping", "configure_callbacks", "lr_scheduler_step"]


def noted(method: Any) -> Any:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(method.__name__)
        return method(self, *args, **kwargs)

    return call


class Hooks(pl.LightningModule):
    """Notes every hook and every loss."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.losses: list[float] = []
        self.in_training: list[bool] = []
        layers = [nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, num_classes)]
        self.net: Any = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(x)
        return out

    @property
    def train_losses(self) -> list[float]:
        return [loss for loss, in_training in zip(self.losses, self.in_training, strict=True) if in_training]

    def loss(self, batch: Any) -> torch.Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(float(loss.detach()))
        self.in_training.append(self.training)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Any:  # noqa: ARG002
        self.calls.append("training_step")
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.calls.append("validation_step")
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        self.calls.append("configure_optimizers")
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


for _name in dict.fromkeys(HOOKS):
    setattr(Hooks, _name, noted(getattr(Hooks, _name)))


class Steps(Hooks):
    """A schedule by step, as long as the whole training."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Positions(Hooks):
    """Normalizes over positions, as a network of pictures does."""

    def __init__(self) -> None:
        super().__init__()
        body = [nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 8, 1), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten()]
        self.net = nn.Sequential(*body, nn.Linear(32, 3))


class ValidatesInTrainMode(Positions):
    """Trains its network's mode for a loss of validation, as deepforest does with a detector of torchvision."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.net.train()
        super().validation_step(batch, batch_idx)
        self.net.eval()

    def test_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.net.train()
        self.log("test_loss", self.loss(batch))


class Plateaus(Hooks):
    """A schedule by a metric that validation logs."""

    monitor = "val_loss"

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 2.0)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": self.monitor}}


class PlateausByOurName(Plateaus):
    monitor = "val/loss"


class LogsSteps(Hooks):
    """Logs its loss as most modules do: Lightning then keeps the one of the last batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:  # noqa: ARG002
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss


class TwoOptimizers(Hooks):
    """Manual optimization with two optimizers, as adversarial networks are trained."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            loss = self.loss(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.log("train_loss", loss)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net[0].parameters(), 0.1), torch.optim.Adam(self.net[1:].parameters(), 0.01)


class Averages(Hooks):
    """An average of the weights, kept up by a hook, and Lightning's own by a callback."""

    def __init__(self) -> None:
        super().__init__()
        self.average = torch.optim.swa_utils.AveragedModel(self.net[0])

    def on_train_batch_end(self, *_: Any) -> None:
        self.average.update_parameters(self.net[0])

    def configure_callbacks(self) -> Any:
        return [StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)]


class Unfreezes(Hooks):
    """The first layer is trained from the second epoch on."""

    def on_train_epoch_start(self) -> None:
        for parameter in self.net[0].parameters():
            parameter.requires_grad_(self.current_epoch > 0)


class FrozenAtFirst(Unfreezes):
    """Frozen already when it is built."""

    def __init__(self) -> None:
        super().__init__()
        self.net[0].requires_grad_(False)


class Adversarial(TwoOptimizers):
    """Freezes a part while the other one is trained, in the order of pix2pix: it is frozen between two steps."""

    def training_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        first, rest = self.optimizers()  # type: ignore[misc]
        self.net[0].requires_grad_(True)
        for optimizer in (first, rest):
            loss = self.loss(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.net[0].requires_grad_(False)


class FreezesInForward(Hooks):
    """A layer says itself in which epochs it is trained, as prototypes do."""

    def loss(self, batch: Any) -> Any:
        self.net[0].requires_grad_(self.current_epoch > 0)
        return super().loss(batch)


class UnfreezesInStep(Hooks):
    """Frozen when it is built, and unfrozen by a training step."""

    def __init__(self) -> None:
        super().__init__()
        self.net[0].requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.net[0].requires_grad_(self.global_step > 1)
        return super().training_step(batch, batch_idx)


class Probe(pl.Callback):
    """Trains a layer of its own on the module, with an optimizer that Lightning does not know."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        with torch.random.fork_rng(devices=[]):
            pl_module.probe = nn.Linear(4, 3)
        self.optimizer = torch.optim.SGD(pl_module.probe.parameters(), 0.1)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(pl_module.probe(batch[0]), batch[1]).backward()
        self.optimizer.step()


class Probed(Hooks):
    """Watched by a probe."""

    def configure_callbacks(self) -> Any:
        return [Probe()]


class Stops(Hooks):
    """Callbacks of its own: early stopping, a checkpoint, a monitor of the rate."""

    def configure_callbacks(self) -> Any:
        return [
            EarlyStopping("val_loss", patience=1, min_delta=100.0),
            ModelCheckpoint(monitor="val_loss"),
        ]


@dataclasses.dataclass
class Notes:
    """What a user may want to remember."""

    best: float
    seen: set[str]


class SavesObjects(Hooks):
    """Puts objects of all kinds into its checkpoints, by hooks of its own and of callbacks."""

    def __init__(self) -> None:
        super().__init__()
        self.notes = Notes(0.0, set())

    def on_train_batch_end(self, *_: Any) -> None:
        self.notes.best += 1.0
        self.notes.seen.add(f"batch {len(self.notes.seen)}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["notes"] = self.notes
        checkpoint["array"] = np.arange(3.0)
        checkpoint["scalar"] = np.float64(0.5)
        checkpoint["place"] = Path("notes.txt")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert checkpoint["array"].sum() == 3.0
        assert checkpoint["scalar"] == 0.5
        assert checkpoint["place"].suffix == ".txt"
        self.notes = checkpoint["notes"]

    def on_train_epoch_end(self) -> None:
        self.log("noted", self.notes.best * len(self.notes.seen))

    def configure_callbacks(self) -> Any:
        return [
            EarlyStopping("val_loss", patience=50),
            ModelCheckpoint(monitor="val_loss", save_last=True),
            StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1),
        ]


class Drops(Hooks):
    """Returns its loss in a dict, accumulates nothing, and skips a batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx == 1 else {"loss": self.loss(batch), "more": 1}


class BuiltLate(Hooks):
    """Builds its network in configure_model."""

    def __init__(self) -> None:
        super().__init__()
        self.net = None

    def configure_model(self) -> None:
        if self.net is None:
            self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


class BuiltInSetup(BuiltLate):
    """Builds its network in setup, from what the data module says."""

    def configure_model(self) -> None: ...

    def setup(self, stage: str) -> None:  # noqa: ARG002
        classes = self.trainer.datamodule.num_classes  # type: ignore[attr-defined]
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, classes))


def made_by_a_function():  # type: ignore[no-untyped-def]
    return Hooks()


def made_by_an_annotated_function(width: int = 8) -> Hooks:
    return Hooks()


class WatchesRate(Hooks):
    def configure_callbacks(self) -> Any:
        return LearningRateMonitor()


class Points(pl.LightningDataModule):
    """Labelled points in an order of their own."""

    num_classes = 3

    def __init__(
        self,
        samples: int = 44,  # noqa: ARG002
        batch_size: int = 8,  # noqa: ARG002
        shuffle: bool = False,  # noqa: ARG002
        num_workers: int = 0,  # noqa: ARG002
    ) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:  # noqa: ARG002
        generator = torch.Generator().manual_seed(7)
        x = torch.randn(self.hparams["samples"], 4, generator=generator)
        self.points: Dataset[Any] = TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())

    def train_dataloader(self) -> Any:
        options = self.hparams
        return DataLoader(
            self.points, options["batch_size"], shuffle=options["shuffle"], num_workers=options["num_workers"]
        )

    def val_dataloader(self) -> Any:
        return DataLoader(self.points, 8)


class Dicts(Points):
    """Batches are dicts with names in them."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.points = [{"x": x, "y": y, "name": str(i)} for i, (x, y) in enumerate(self.points)]  # type: ignore[assignment, misc, arg-type]


class TakesDicts(Hooks):
    def loss(self, batch: Any) -> torch.Tensor:
        return super().loss((batch["x"], batch["y"]))


class NoDropout(TakesDicts):
    def __init__(self) -> None:
        super().__init__()
        self.net[3].p = 0.0

    def loss(self, batch: Any) -> torch.Tensor:
        assert len(batch["name"]) == len(batch["x"])
        return super().loss(batch)


class WithWeights(Points):
    """Each batch comes with a weight of each class."""

    def train_dataloader(self) -> Any:
        return DataLoader(self.points, 8, collate_fn=_with_weights)


def _with_weights(samples: Any) -> Any:
    return *torch.utils.data.default_collate(samples), torch.ones(3)


class DrawsItsSplit(Points):
    """Draws what it trains on, and noise on each sample, from the numbers of everybody."""

    def train_dataloader(self) -> Any:
        torch.rand(3)
        part, _ = random_split(self.points, [36, len(self.points) - 36])  # type: ignore[arg-type]
        return DataLoader(_Noisy(part), 8, shuffle=True)

    def val_dataloader(self) -> Any:
        torch.rand(2)
        return super().val_dataloader()


class _Noisy(Dataset[Any]):
    def __init__(self, points: Dataset[Any]) -> None:
        self.points = points

    def __len__(self) -> int:
        return len(self.points)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        x, y = self.points[index]
        return x + 0.1 * torch.randn_like(x), y


class DrawsAtStart(Hooks):
    """Draws numbers when training starts, as people do who keep a sample of noise to look at."""

    def on_train_start(self) -> None:
        self.noise = torch.randn(4)


class _Stream(IterableDataset[Any]):
    def __init__(self, points: Dataset[Any]) -> None:
        self.points = points

    def __iter__(self) -> Any:
        return iter([self.points[i] for i in range(len(self.points))])  # type: ignore[arg-type]


class Streams(Points):
    def train_dataloader(self) -> Any:
        return DataLoader(_Stream(self.points), 8)


class _PlacedStream(_Stream):
    """Knows which sample is next, also after a pass was left."""

    next = 0

    def __iter__(self) -> Any:
        while self.next < len(self.points):  # type: ignore[arg-type]
            self.next += 1
            x, y = self.points[self.next - 1]
            yield x + 0.1 * torch.randn_like(x), y
        self.next = 0


class _PlacedLoader(DataLoader[Any]):
    dataset: Any

    def state_dict(self) -> dict[str, Any]:
        return {"next": self.dataset.next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.dataset.next = state["next"]


class PlacedStreams(Points):
    """A loader that can be read from the middle, in a place of its own on each worker."""

    def train_dataloader(self) -> Any:
        stream = _PlacedStream(self.points)
        stream.next = self.trainer.global_rank  # type: ignore[union-attr]
        return _PlacedLoader(stream, 8)


class NoValidation(Points):
    def val_dataloader(self) -> Any:
        return []


class TwoValidations(Points):
    def val_dataloader(self) -> Any:
        return [DataLoader(self.points, 8), DataLoader(self.points, 5)]


class LogsLabels(Hooks):
    """Logs what can be counted."""

    def __init__(self) -> None:
        super().__init__()
        self.zeros = MeanMetric()
        self.val_zeros = MeanMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Any:  # noqa: ARG002
        self.zeros((batch[1] == 0).float())
        self.log("train_zeros", self.zeros)
        self.log("train_label", batch[1].float().mean(), on_epoch=True)
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.val_zeros((batch[1] == 0).float())
        self.log("val_accuracy_metric", self.val_zeros)
        self.log("val_label", batch[1].float().mean())
        self.log("val_greatest", batch[1].max().float(), reduce_fx="max")


class Projects(Hooks):
    """A training step runs a projector that forward leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.projector = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))

    def training_step(self, batch: Any, batch_idx: int) -> Any:  # noqa: ARG002
        return F.cross_entropy(self.projector(self(batch[0])), batch[1])


class LogsInAgreement(Hooks):
    """Logs with sync_dist what can be counted, by batch and at the end of the epoch."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.seen = [*getattr(self, "seen", []), *batch[1].tolist()]
        self.log("val_one", torch.tensor(1.0), sync_dist=True)
        self.log("val_label", batch[1].float().mean(), sync_dist=True)
        self.log("val_labels", batch[1].float().sum(), sync_dist=True, reduce_fx="sum")

    def on_validation_epoch_end(self) -> None:
        self.log("val_label_in_the_end", float(np.mean(self.seen)), sync_dist=True)
        self.seen = []


class LogsBatchSize(Hooks):
    """Says itself how many samples a batch has: one, whatever its tensors are."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:  # noqa: ARG002
        loss = self.loss(batch)
        self.log("a_loss", loss, batch_size=1)
        return loss


def one(batch: Any) -> int:
    """Counts a batch as one sample."""
    return 1


def half(batch: Any) -> float:
    return len(batch[1]) / 2


class Retrieves(Hooks):
    """Validates with a metric that keeps a list, an item for each batch. It depends on the data alone."""

    def __init__(self) -> None:
        super().__init__()
        self.rank = RetrievalMRR()

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        x, y = batch
        self.rank.update(x[:, 2], y > 0, (10 * x[:, 3]).round().long() + 100)

    def on_validation_epoch_end(self) -> None:
        self.log("val_rank", self.rank.compute())
        self.rank.reset()


class NoOptimizer(Hooks):
    configure_optimizers = pl.LightningModule.configure_optimizers


class TwoValidationsToo(Hooks):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:  # noqa: ARG002
        super().validation_step(batch, batch_idx)


class Digits(Hooks):
    """For images of digits."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes), nn.BatchNorm1d(num_classes))

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.log("val_samples", float(len(batch[1])), reduce_fx="sum")


class Weighted(Points):
    """Draws its samples at random, by weight."""

    def train_dataloader(self) -> Any:
        weights = [1.0 + i % 3 for i in range(44)]
        return DataLoader(self.points, 8, sampler=WeightedRandomSampler(weights, 40))


class OwnBatches(Points):
    """A batch sampler of its own: neighbours go together."""

    def train_dataloader(self) -> Any:
        return DataLoader(self.points, batch_sampler=_Neighbours(44, 4))


class _Neighbours(Sampler[list[int]]):
    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count // self.size

    def __iter__(self) -> Any:
        for start in torch.randperm(len(self)).tolist():
            yield list(range(start * self.size, (start + 1) * self.size))


class OwnLoaders(Hooks):
    """Brings its samples along."""

    def train_dataloader(self) -> Any:
        x = torch.randn(40, 4)
        return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 4, shuffle=True)

    def val_dataloader(self) -> Any:
        return self.train_dataloader()


class WithoutForward(pl.LightningModule):
    """Only its training_step knows what to do."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

    def training_step(self, batch: Any, batch_idx: int) -> Any:  # noqa: ARG002
        return F.cross_entropy(self.net(batch[0]), batch[1])


class Branches(Digits):
    """Can't be exported: it branches on values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(x)
        return out * 2 if out.mean() > 0 else out


class LogsFiles(Digits):
    """Writes text and pictures with its logger."""

    def on_train_epoch_end(self) -> None:
        run: Any = self.logger.experiment  # type: ignore[union-attr]
        run.log_text(f"epoch {self.current_epoch}", "notes.txt")
        run.add_image("first", torch.rand(3, 8, 8), self.global_step)


class TwoAtOnce(Digits):
    """Two optimizers, which Lightning takes with manual optimization alone."""

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net[1].parameters(), 0.1), torch.optim.Adam(self.net[2].parameters(), 1e-3)]


class Values(pl.LightningDataModule):
    """Targets are numbers, or several labels at once."""

    def __init__(self, several: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(40, 64, generator=generator)
        y = (x[:, :5] > 0).float() if several else x[:, :1] - x[:, 1:2]
        self.num_classes = y.shape[1]
        self.samples = TensorDataset(x, y)

    def train_dataloader(self) -> Any:
        return DataLoader(self.samples, 4, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.samples, 4)


class Fits(pl.LightningModule):
    """Regression by least squares."""

    def __init__(self, num_classes: int = 1) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(x)
        return out

    def training_step(self, batch: Any, batch_idx: int) -> Any:  # noqa: ARG002
        return F.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())


class FiltersFrozen(Hooks):
    """Gives its optimizer the parameters that need a gradient, and leaves out the first layer."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.net[1:].parameters() if p.requires_grad], 0.1)


class TakesNumbers(Hooks):
    """Its forward takes no batch of the loader."""

    def forward(self, count: int, scale: float, other: str) -> torch.Tensor:  # type: ignore[override]
        raise NotImplementedError

    def loss(self, batch: Any) -> torch.Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])


class Tested(Hooks):
    """Logs a mean, a sum and a metric object of its test. Notes the statistics that it is tested with."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = MeanMetric()
        self.tested_with: torch.Tensor | None = None

    def test_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.calls.append("test_step")
        right = (self(batch[0]).argmax(1) == batch[1]).float()
        self.mean(right)
        self.log("test_acc", right.mean(), batch_size=len(right))
        self.log("test_right", right.sum(), reduce_fx="sum")
        self.log("test_mean", self.mean)
        self.tested_with = self.net[1].running_mean.clone()


class PointsAndTest(Points):
    """13 points for the test, which two workers can't share evenly."""

    def test_dataloader(self) -> Any:
        return DataLoader(torch.utils.data.Subset(self.points, range(13)), 4)


class Tests(Tested):
    """Has all its loaders itself."""

    def __init__(self) -> None:
        super().__init__()
        self.points = PointsAndTest()

    def setup(self, stage: str) -> None:
        self.points.setup(stage)

    def train_dataloader(self) -> Any:
        return self.points.train_dataloader()

    def test_dataloader(self) -> Any:
        return self.points.test_dataloader()
