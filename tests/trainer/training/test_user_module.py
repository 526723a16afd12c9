"""A user's LightningModule runs as it is: Lightning fits it, unwrapped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import Trainer

from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.data import build_data
from syncnorm.trainer.training.conversion import ConvertedNorms
from syncnorm.trainer.worker.module_and_data import assemble
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer import own_modules
from tests.helpers.trainer.own_module_jobs import MODULES, job
from tests.helpers.trainer.ranks import PlainDDP, PoolEnvironment, train


def plain_trainer(**options: Any) -> Trainer:
    """Lightning's own, without what a job does by itself."""
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def plainly(rank: int, world_size: int, root: str, name: str, data: str) -> tuple[list[str], list[float]]:
    """What plain Lightning calls, and the losses it comes to."""
    L.seed_everything(0, verbose=False)
    datamodule, module = getattr(own_modules, data)(), getattr(own_modules, name)()
    plain_trainer(default_root_dir=root).fit(module, datamodule=datamodule)
    return _without_saves(module.calls), module.losses


def as_a_job(rank: int, world_size: int, root: str, document: dict[str, Any]) -> tuple[list[str], list[float]]:
    seen: list[Any] = []
    train(rank, world_size, root, document, prepare=lambda _trainer, module, _norms: seen.append(module))
    return _without_saves(seen[0].calls), seen[0].losses


def _without_saves(calls: list[str]) -> list[str]:
    """How often a job saves is for its spec to say."""
    return [call for call in calls if call != "on_save_checkpoint"]


EVERY = [
    "Hooks",
    "Steps",
    "Plateaus",
    "TwoOptimizers",
    "Averages",
    "Unfreezes",
    "Stops",
    "Drops",
    "BuiltLate",
    "BuiltInSetup",
]


@pytest.mark.parametrize("name", EVERY)
def test_hooks_and_losses_are_those_of_plain_lightning(name: str, ranks: Pool, tmp_path: Path) -> None:
    calls, losses = ranks.run(plainly, 1, str(tmp_path / "plain"), name, "Points")[0]

    ours, found = ranks.run(as_a_job, 1, str(tmp_path), job(name))[0]

    assert len(losses) > 2
    assert found == losses
    assert ours == calls


def devices(rank: int, world_size: int, root: str, document: dict[str, Any]) -> tuple[int, int, int]:
    """What a module scales its learning rate by."""
    seen: list[Trainer] = []
    train(rank, world_size, root, document, prepare=lambda trainer, *_: seen.append(trainer))
    return seen[0].num_devices, seen[0].num_nodes, seen[0].world_size


def test_module_finds_as_many_devices_as_the_job_has_workers(ranks: Pool, tmp_path: Path) -> None:
    assert ranks.run(devices, 2, str(tmp_path), job("Hooks", workers=2)) == [(2, 1, 2), (2, 1, 2)]


@pytest.mark.parametrize("kind", ["sync_batch", "sync_batch_renorm"])
def test_validation_in_training_mode_neither_waits_nor_moves_statistics(kind: str, ranks: Pool, tmp_path: Path) -> None:
    """Of 33 samples one rank has three batches, and the other two."""
    uneven = {"class_path": f"{MODULES}.Points", "init_args": {"samples": 33}}
    parts: dict[str, Any] = {"workers": 2, "norm": {"kind": kind}}

    found = [
        ranks.run(train, 2, str(tmp_path / name), job(name, **parts) | {"data": uneven})
        for name in ("Positions", "ValidatesInTrainMode")
    ]

    (expected, _), (first, second) = found
    torch.testing.assert_close(first.state, expected.state, rtol=0, atol=0)
    torch.testing.assert_close(second.state, expected.state, rtol=0, atol=0)
    assert first.metrics["val_loss"] != expected.metrics["val_loss"]


def plainly_on_two(rank: int, world_size: int, name: str, options: dict[str, Any]) -> list[float]:
    """The training losses of plain Lightning with its DDP."""
    L.seed_everything(0, verbose=False)
    module, datamodule = getattr(own_modules, name)(), own_modules.Points(**options)
    module.net[3].p = 0.0  # each of our ranks draws masks of its own
    trainer = plain_trainer(strategy=PlainDDP(), plugins=[PoolEnvironment(rank, world_size)])
    trainer.fit(module, datamodule=datamodule)
    return module.train_losses


def as_a_job_on_two(rank: int, world_size: int, root: str, document: dict[str, Any]) -> list[float]:
    seen: list[Any] = []

    def prepare(_trainer: Trainer, module: Any, _norms: ConvertedNorms) -> None:
        module.net[3].p = 0.0
        seen.append(module)

    train(rank, world_size, root, document, prepare=prepare)
    return seen[0].train_losses  # type: ignore[no-any-return]


@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"samples": 45, "shuffle": True}])
@pytest.mark.parametrize("name", ["Hooks", "TwoOptimizers"])
def test_losses_on_two_workers_are_those_of_plain_lightning(
    name: str, options: dict[str, Any], ranks: Pool, tmp_path: Path
) -> None:
    plain = ranks.run(plainly_on_two, 2, name, options)
    document = job(name, workers=2)
    document["data"]["init_args"] = options

    ours = ranks.run(as_a_job_on_two, 2, str(tmp_path), document)

    for found, wanted in zip(ours, plain, strict=True):
        assert found == pytest.approx(wanted, rel=1e-6)  # fp32


@pytest.mark.parametrize("name", ["Unfreezes", "FrozenAtFirst"])
def test_layers_that_are_unfrozen_later_are_trained_alike_on_all_workers(
    name: str, ranks: Pool, tmp_path: Path
) -> None:
    first, second = ranks.run(train, 2, str(tmp_path), job(name, workers=2, train={"epochs": 3}))

    fresh = own_modules.Hooks()
    assert first.state.keys() == fresh.state_dict().keys()
    for path, tensor in first.state.items():
        if "running" not in path:
            assert torch.equal(tensor, second.state[path]), path


@pytest.mark.parametrize(("length", "steps"), [({"epochs": 2}, {6, 12}), ({"steps": 4}, {4})])
def test_metrics_of_steps_are_logged_in_an_epoch_of_few_steps(
    length: dict[str, int], steps: set[int], ranks: Pool, tmp_path: Path
) -> None:
    ranks.run(train, 1, str(tmp_path), job("Hooks", train=length))

    (spool,) = tmp_path.rglob("metrics.jsonl")
    points = map(json.loads, spool.read_text().splitlines())
    assert {point["step"] for point in points if point["key"] == "train_loss"} == steps


@pytest.mark.parametrize("name", ["Adversarial", "FreezesInForward", "UnfreezesInStep"])
def test_layers_that_a_step_freezes_and_unfreezes_are_trained_alike_on_all_workers(
    name: str, ranks: Pool, tmp_path: Path
) -> None:
    first, second = ranks.run(train, 2, str(tmp_path), job(name, workers=2, train={"epochs": 3}))

    for path, tensor in first.state.items():
        if "running" not in path:
            assert torch.equal(tensor, second.state[path]), path
    assert not torch.equal(first.state["net.0.weight"], _untrained(name).state_dict()["net.0.weight"])


def _untrained(name: str) -> Any:
    L.seed_everything(0, verbose=False)
    return getattr(own_modules, name)()


@pytest.mark.parametrize("workers", [1, 2])
def test_probe_that_a_callback_trains_disturbs_nothing(workers: int, ranks: Pool, tmp_path: Path) -> None:
    plain = ranks.run(train, workers, str(tmp_path / "plain"), job("Hooks", workers=workers))[0]

    found = ranks.run(train, workers, str(tmp_path), job("Probed", workers=workers))

    for path, tensor in plain.state.items():
        assert torch.equal(tensor, found[0].state[path]), path
    if workers == 2:
        assert not torch.equal(found[0].state["probe.weight"], found[1].state["probe.weight"])


def _of_45_samples(document: dict[str, Any]) -> torch.Tensor:
    """Give the job 45 samples, which two workers can't share evenly; their labels."""
    document["data"]["init_args"] = {"samples": 45}
    points = own_modules.Points(samples=45)
    points.setup("fit")
    return torch.tensor([float(y) for _, y in points.points])  # type: ignore[attr-defined]


def test_values_logged_with_sync_dist_are_means_over_all_samples_of_uneven_shares(ranks: Pool, tmp_path: Path) -> None:
    document = job("LogsInAgreement", workers=2)
    labels = _of_45_samples(document)

    first, second = ranks.run(train, 2, str(tmp_path), document)

    assert first.metrics == second.metrics
    assert first.metrics["val_one"] == 1
    assert first.metrics["val_label"] == pytest.approx(float(labels.mean()), rel=1e-6)
    assert first.metrics["val_labels"] == float(labels.sum())
    assert first.metrics["val_label_in_the_end"] == pytest.approx(float(labels.mean()), rel=1e-6)


def test_logged_values_are_means_over_all_samples_of_all_workers(ranks: Pool, tmp_path: Path) -> None:
    document = job("LogsLabels", workers=2, norm={"kind": "sync_batch"})
    labels = _of_45_samples(document)

    first, second = ranks.run(train, 2, str(tmp_path), document)

    assert first.metrics == second.metrics
    padded = torch.cat([labels, labels[:1]])  # 45 samples for 2 workers: one is repeated in training
    assert first.metrics["train_label"] == pytest.approx(float(padded.mean()), rel=1e-6)
    assert first.metrics["val_label"] == pytest.approx(float(labels.mean()), rel=1e-6)
    assert first.metrics["val_greatest"] == 2.0
    assert first.metrics["val_accuracy_metric"] == pytest.approx(float((labels == 0).double().mean()), rel=1e-6)


def test_metrics_that_keep_lists_see_every_sample_of_all_workers(ranks: Pool, tmp_path: Path) -> None:
    shared = job("Retrieves", workers=2)
    # Validated as 17 and 16 samples by 8: the first worker has one more batch.
    shared["data"]["init_args"] = {"samples": 33, "batch_size": 10}
    alone = shared | {"resources": {"workers": 1}}

    found = [each.metrics["val_rank"] for each in ranks.run(train, 2, str(tmp_path / "shared"), shared)]
    wanted = ranks.run(train, 1, str(tmp_path / "alone"), alone)[0].metrics["val_rank"]

    assert found == pytest.approx([wanted, wanted], rel=1e-6)  # fp32


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("made_by_a_function", {}),
        ("made_by_an_annotated_function", {}),
        ("made_by_an_annotated_function", {"batch_size": 4}),
    ],
)
def test_function_may_make_the_module(name: str, data: dict[str, Any]) -> None:
    document = job(name, data="Dicts")
    document["data"] |= data

    assembly = assemble(read_spec(document), 0, 1)

    assert type(assembly.module) is own_modules.Hooks
    assert type(assembly.datamodule) is own_modules.Dicts


def test_module_of_pytorch_lightning_is_refused_by_name() -> None:
    document = job("Hooks") | {"model": {"class_path": "pytorch_lightning.demos.boring_classes.BoringModel"}}

    with pytest.raises(ValueError, match=r"^model.class_path: .*BoringModel must derive from lightning\.pytorch"):
        assemble(read_spec(document), 0, 1)


@pytest.mark.parametrize("data", ["Streams", "NoValidation", "TwoValidations", "Weighted", "OwnBatches"])
def test_loaders_of_any_kind_train(data: str, ranks: Pool, tmp_path: Path) -> None:
    name = "TwoValidationsToo" if data == "TwoValidations" else "Hooks"

    first, second = ranks.run(train, 2, str(tmp_path), job(name, data=data, workers=2))

    assert first.metrics["train/loss"] == second.metrics["train/loss"] > 0


@pytest.mark.parametrize("name", ["BuiltLate", "BuiltInSetup"])
def test_layers_that_are_built_late_are_converted(name: str, ranks: Pool, tmp_path: Path) -> None:
    report = ranks.run(report_of, 2, str(tmp_path), job(name, workers=2, norm={"kind": "sync_batch"}))[0]

    assert report == [{"path": "net.1", "from": "BatchNorm1d", "to": "SyncBatchNorm"}]


def report_of(rank: int, world_size: int, root: str, document: dict[str, Any]) -> list[dict[str, str]]:
    seen: list[list[dict[str, str]]] = []
    train(rank, world_size, root, document, prepare=lambda _trainer, _module, norms: seen.append(norms.report))
    return seen[0]


@pytest.mark.parametrize(
    ("name", "parts", "says"),
    [
        ("Hooks", {"optimizer": {"name": "sgd", "lr": 0.1}}, "optimizer must be left out, because Hooks.configure"),
        ("Hooks", {"schedule": {"name": "cosine"}}, "schedule must be left out"),
        ("TwoOptimizers", {"train": {"epochs": 1, "clip_grad_norm": 1.0}}, "train.clip_grad_norm must be left out"),
        ("TwoOptimizers", {"train": {"epochs": 1, "accumulate": 2}}, "train.accumulate must be left out"),
        ("TwoOptimizers", {"diagnostics": ["landscape"]}, "diagnostics must be left out"),
    ],
)
def test_what_a_module_can_not_get_is_refused_by_name(name: str, parts: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=rf"^{says}"):
        assemble(read_spec(job(name, **parts)), 0, 1)


def test_optimizer_of_the_spec_replaces_the_modules_own_where_it_says_so(ranks: Pool, tmp_path: Path) -> None:
    own = job("Hooks", optimizer={"name": "adam", "lr": 0.25, "override": True})

    assert ranks.run(optimizers_of, 1, str(tmp_path / "1"), own) == [[("Adam", 0.25)]]
    assert ranks.run(optimizers_of, 1, str(tmp_path / "2"), job("Hooks")) == [[("SGD", 0.1)]]
    assert ranks.run(optimizers_of, 1, str(tmp_path / "3"), job("NoOptimizer")) == [[("SGD", 0.1)]]


def optimizers_of(rank: int, world_size: int, root: str, document: dict[str, Any]) -> list[tuple[str, float]]:
    seen: list[Any] = []
    train(rank, world_size, root, document, prepare=lambda trainer, _module, _norms: seen.extend(trainer.optimizers))
    return [(type(each).__name__, each.defaults["lr"]) for each in seen]


def test_built_in_data_feeds_a_module_of_the_user(ranks: Pool, tmp_path: Path) -> None:
    document = job("Digits", workers=2) | {"data": {"name": "digits", "batch_size": 64}}
    data = build_data(read_spec(document).data, 0)

    found = ranks.run(train, 2, str(tmp_path), document)[0]

    assert found.metrics["val_samples"] == len(data.val)  # type: ignore[arg-type]


def test_module_with_loaders_of_its_own_needs_no_data(ranks: Pool, tmp_path: Path) -> None:
    document = job("OwnLoaders", workers=2)
    del document["data"]

    found = ranks.run(train, 2, str(tmp_path), document)[0]

    assert found.metrics["val/loss"] > 0
    document["model"]["class_path"] = f"{MODULES}.Hooks"
    with pytest.raises(ValueError, match=r"^data must be given, because Hooks defines no train_dataloader"):
        assemble(read_spec(document), 0, 1)


@pytest.mark.parametrize(
    ("name", "count", "is_weighted"),
    [("LogsLabels", None, True), ("LogsLabels", "one", False), ("LogsBatchSize", None, False)],
)
def test_samples_are_counted_as_the_user_says(
    name: str, count: str | None, is_weighted: bool, ranks: Pool, tmp_path: Path
) -> None:
    document = job(name, train={"epochs": 1})
    document["data"]["count"] = count and f"{MODULES}.{count}"

    losses, found = ranks.run(losses_and_metrics, 1, str(tmp_path), document)[0]

    sizes = [8, 8, 8, 8, 8, 4] if is_weighted else [1] * 6
    expected = sum(size * loss for size, loss in zip(sizes, losses, strict=True)) / sum(sizes)
    assert found["train/loss"] == pytest.approx(expected, rel=1e-6)


def losses_and_metrics(
    rank: int, world_size: int, root: str, document: dict[str, Any]
) -> tuple[list[float], dict[str, float]]:
    seen: list[Any] = []
    trained = train(rank, world_size, root, document, prepare=lambda _trainer, module, _norms: seen.append(module))
    return seen[0].train_losses, trained.metrics


@pytest.mark.parametrize("workers", [1, 2])
def test_loss_logged_by_step_alone_is_the_mean_of_the_epoch_by_its_common_name(
    workers: int, ranks: Pool, tmp_path: Path
) -> None:
    document = job("LogsSteps", train={"epochs": 1}, workers=workers)

    of_ranks = ranks.run(losses_and_metrics, workers, str(tmp_path), document)

    losses, found = of_ranks[0]
    assert found["train_loss"] == losses[-1]
    sizes = [8, 8, 8, 8, 8, 4] if workers == 1 else [8, 8, 6]
    mean = sum(size * loss for each, _ in of_ranks for size, loss in zip(sizes, each, strict=True)) / 44
    assert found["train/loss"] == pytest.approx(mean, rel=1e-6)


def test_loss_of_a_step_that_returns_none_keeps_its_common_name(ranks: Pool, tmp_path: Path) -> None:
    _, found = ranks.run(losses_and_metrics, 1, str(tmp_path), job("TwoOptimizers", train={"epochs": 1}))[0]

    assert found["train/loss"] == found["train_loss"]


@pytest.mark.parametrize(
    ("count", "says"),
    [("half", "data.count must return the number of samples"), ("none", "data.count must name a class or a function")],
)
def test_wrong_count_is_named(count: str, says: str, ranks: Pool, tmp_path: Path) -> None:
    document = job("Hooks")
    document["data"]["count"] = f"{MODULES}.{count}"

    with pytest.raises(ValueError, match=says):
        ranks.run(train, 1, str(tmp_path), document)
