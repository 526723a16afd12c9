"""Jobs of the modules here on ranks of the gloo pool, and the same with plain Lightning."""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import lightning as L

from syncnorm.trainer.user_code import lightning_names
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.ranks import PlainDDP, PoolEnvironment, TrainedModel, train

HERE = Path(__file__).parent


def job(
    model: str, data: str | dict[str, Any], init_args: dict[str, Any] | None = None, **parts: Any
) -> dict[str, Any]:
    """The spec of a job of two workers. data: a class path with its `init_args`, or a whole section."""
    section = {"class_path": data, "init_args": init_args or {}} if isinstance(data, str) else data
    return {
        "name": model.rpartition(".")[2].lower(),
        "model": {"class_path": model},
        "data": section,
        "train": {"epochs": 2},
        "resources": {"workers": 2},
        "limits": {"max_failures": 0},
        **parts,
    }


def facts_in(folder: Path) -> list[dict[str, Any]]:
    """What the module of each rank wrote, see `counted_hooks`."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank_*.json"))]


def trained(pool: Pool, folder: Path, document: dict[str, Any]) -> tuple[TrainedModel, list[dict[str, Any]]]:
    """Train the job; what rank 0 ends with, and the facts of each rank."""
    first, *_ = pool.run(train_in, document["resources"]["workers"], str(folder), document)
    return first, facts_in(folder)


def plainly_trained(pool: Pool, folder: Path, document: dict[str, Any]) -> list[dict[str, Any]]:
    """The facts of each rank with plain Lightning on two workers."""
    pool.run(_train_plainly, 2, str(folder), document)
    return facts_in(folder)


def made(part: dict[str, Any]) -> Any:
    """The object that a section of a spec names, in this process."""
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))
    module, _, name = part["class_path"].rpartition(".")
    return getattr(importlib.import_module(module), name)(**part.get("init_args", {}))


def prepare(folder: str) -> None:
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # for loaders that start processes
    sys.path[:] = [str(HERE), *(path for path in sys.path if path != str(HERE))]
    Path(folder).mkdir(parents=True, exist_ok=True)
    os.environ["FACTS"] = folder


def train_in(rank: int, world_size: int, folder: str, document: dict[str, Any], *more: Any) -> TrainedModel:
    """Train as a worker does, in `folder`, where a module may look for its data. more: as in `train`."""
    prepare(folder)
    lightning_names.unite()
    with contextlib.chdir(folder):
        return train(rank, world_size, f"{folder}/job", document, *more)


def _train_plainly(rank: int, world_size: int, folder: str, document: dict[str, Any]) -> None:
    prepare(folder)
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        strategy=PlainDDP(find_unused_parameters=True),
        plugins=[PoolEnvironment(rank, world_size)],
        max_epochs=document["train"]["epochs"],
        num_sanity_val_steps=0,
        default_root_dir=folder,
        logger=L.pytorch.loggers.CSVLogger(folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(made(document["model"]), datamodule=made(document["data"]))
