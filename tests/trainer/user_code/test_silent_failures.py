"""What once happened in silence to a LightningModule of the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from syncnorm.trainer.contract.protocol import Result
from syncnorm.trainer.driver import single_process
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.ranks import launch_of, train
from tests.trainer.conftest import Mlflow

pytestmark = pytest.mark.filterwarnings("ignore")  # exporters and MLflow warn about their own internals

HERE = "tests.trainer.user_code.test_silent_failures"


class Samples(pl.LightningDataModule):
    num_classes = 3

    def __init__(self, samples: int = 32) -> None:
        super().__init__()
        self.samples = samples

    def setup(self, stage: str) -> None:  # noqa: ARG002
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(self.samples, 4, generator=generator)
        self.points = TensorDataset(x, (x[:, 0] > 0).long())

    def train_dataloader(self) -> Any:
        return DataLoader(self.points, 8, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.points, 8)


class Hooked(pl.LightningModule):
    """Writes down which hooks are called."""

    def __init__(self, notes: str, num_classes: int = 3) -> None:
        super().__init__()
        self.notes = Path(notes)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, num_classes))

    def note(self, hook: str) -> None:
        with self.notes.open("a") as file:
            file.write(f"{hook}\n")

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:  # noqa: ARG002
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def setup(self, stage: str) -> None:  # noqa: ARG002
        self.note("setup")

    def on_train_epoch_start(self) -> None:
        self.note("on_train_epoch_start")

    def on_train_batch_end(self, *_: Any) -> None:
        self.note("on_train_batch_end")

    def on_validation_epoch_end(self) -> None:
        self.note("on_validation_epoch_end")

    def on_after_backward(self) -> None:
        self.note("on_after_backward")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.note("on_before_batch_transfer")
        return super().on_before_batch_transfer(batch, dataloader_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.note("on_save_checkpoint")
        checkpoint["mine"] = 1

    def configure_callbacks(self) -> Any:
        self.note("configure_callbacks")
        return []

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.note("optimizer_step")
        super().optimizer_step(*args, **kwargs)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def job(name: str, workers: int = 1, **data: Any) -> dict[str, Any]:
    return {
        "name": "own",
        "model": {"class_path": f"{HERE}.{name}"},
        "data": {"class_path": f"{HERE}.Samples", "batch_size": 8, "init_args": data},
        "norm": {"kind": "sync_batch"},
        "train": {"epochs": 2},
        "resources": {"workers": workers},
        "export": {"formats": ["pt2"]},
    }


def test_no_hook_is_dropped(ranks: Pool, tmp_path: Path) -> None:
    notes, document = tmp_path / "notes", job("Hooked")
    document["model"]["init_args"] = {"notes": str(notes)}

    ranks.run(train, 1, str(tmp_path), document)

    called = notes.read_text().split()
    counts = {hook: called.count(hook) for hook in dict.fromkeys(called)}
    steps = 2 * 4
    assert counts == {
        "configure_callbacks": 1,
        "setup": 1,
        "on_train_epoch_start": 2,
        "on_before_batch_transfer": steps + 2 * 4,  # as many of validation
        "on_after_backward": steps,
        "optimizer_step": steps,
        "on_train_batch_end": steps,
        "on_validation_epoch_end": 2,
        "on_save_checkpoint": counts["on_save_checkpoint"],
    }
    assert counts["on_save_checkpoint"] >= 2


class MadeUpForward(pl.LightningModule):
    """What it trains is not what its forward does."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, num_classes))
        self.unused = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Any:
        return self.unused(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:  # noqa: ARG002
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_forward_that_is_not_what_was_trained_gets_no_certificate(mlflow_server: Mlflow, tmp_path: Path) -> None:
    where = {"mlflow_uri": mlflow_server.uri, "mlflow_run_id": mlflow_server.new_run()}
    launch = launch_of(job("MadeUpForward")).model_copy(update=where)
    (tmp_path / "launch.json").write_text(launch.model_dump_json())

    answer = single_process.train({"folder": str(tmp_path), "resume_from": None, "patience_s": 0.0})

    result = Result.model_validate(answer)
    assert (result.outcome, result.model) == ("succeeded", None)
    assert result.export is not None
    assert (result.export.state, result.export.reason) == ("skipped", "layers_outside")


class Gathers(Hooked):
    """A contrastive loss over the samples of all workers, as SimCLR has one."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:  # noqa: ARG002
        features = F.normalize(self(batch[0]), dim=1)
        shares = [torch.zeros(1) for _ in range(dist.get_world_size())]
        dist.all_gather(shares, torch.tensor([float(len(features))]))
        assert len({float(share) for share in shares}) == 1
        everyone = [torch.zeros_like(features) for _ in shares]
        dist.all_gather(everyone, features.detach())
        everyone[dist.get_rank()] = features
        similarity = torch.cat(everyone) @ torch.cat(everyone).T
        self.note(f"{len(features)}")
        return -similarity.mean()


@pytest.mark.parametrize("samples", [33, 35])
def test_loss_that_gathers_over_workers_gets_equal_shares(samples: int, ranks: Pool, tmp_path: Path) -> None:
    document = job("Gathers", workers=2, samples=samples)
    document["model"]["init_args"] = {"notes": str(tmp_path / "notes")}

    found = ranks.run(train, 2, str(tmp_path), document)

    shares = [int(line) for line in (tmp_path / "notes").read_text().split() if line.isdigit()]
    assert sum(shares) == 2 * 2 * -(-samples // 2)  # of both workers in both epochs, one sample repeated in each
    trained = [name for name in found[0].state if "running" not in name]
    assert all(torch.equal(found[0].state[name], found[1].state[name]) for name in trained)


class EpochEnd(Hooked):
    """Keeps what its steps found, and logs one mean at the end, as MONAI's examples do."""

    def on_validation_epoch_start(self) -> None:
        self.found: list[Tensor] = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.found.append(F.cross_entropy(self(batch[0]), batch[1], reduction="none"))

    def on_validation_epoch_end(self) -> None:
        self.log("val_loss", torch.cat(self.found).mean())


def test_mean_logged_at_the_end_of_validation_counts_every_sample_once(ranks: Pool, tmp_path: Path) -> None:
    document = job("EpochEnd", workers=2, samples=3)
    document["data"]["batch_size"] = 1
    document["model"]["init_args"] = {"notes": str(tmp_path / "notes")}
    document["train"]["epochs"] = 1

    found = ranks.run(train, 2, str(tmp_path), document)

    data, module = Samples(3), EpochEnd(str(tmp_path / "notes"))
    data.setup("fit")
    module.load_state_dict(found[0].state)
    x, y = data.points.tensors
    expected = F.cross_entropy(module.eval()(x), y).item()
    assert [each.metrics["val/loss"] for each in found] == pytest.approx([expected, expected], rel=1e-5)
