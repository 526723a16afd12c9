"""The weights that a later export is made from: those that the job published, or those of one of its checkpoints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import nn

from syncnorm.trainer.contract.spec import JobSpec
from syncnorm.trainer.data import Data
from syncnorm.trainer.data.loader import train_loader
from syncnorm.trainer.errors import CheckpointCorruptError
from syncnorm.trainer.export.certification import CERTIFICATE_FILE
from syncnorm.trainer.export.checkpoint_choice import find_checkpoint, weights_of
from syncnorm.trainer.export.statistics.population import as_facts, population_statistics
from syncnorm.trainer.export.weights import DESCRIPTION_FILE, WEIGHTS_FILE
from syncnorm.trainer.storage.atomic_files import sha256_of
from syncnorm.trainer.storage.sync import Mirror
from syncnorm.trainer.training import checkpoints

Facts = dict[str, Any]


@dataclass(frozen=True)
class Published:
    """What a job's own export left in `folder`. proof: its certificate; about: what the weights belong to."""

    folder: Path
    proof: Facts
    about: Facts

    @classmethod
    def read(cls, folder: Path, mirror: Mirror) -> Published:
        for name in (CERTIFICATE_FILE, DESCRIPTION_FILE, WEIGHTS_FILE):
            mirror.fetch(folder / name)
        return cls(folder, _read(folder / CERTIFICATE_FILE), _read(folder / DESCRIPTION_FILE))

    @property
    def digest(self) -> str | None:
        """Of the weights: from their certificate, or where the export failed from what they belong to."""
        recorded: str | None = self.proof.get("files", {}).get(WEIGHTS_FILE)
        return recorded or self.about.get("weights", {}).get("sha256")

    @property
    def checkpoint(self) -> Facts:
        found: Facts = self.about.get("checkpoint") or {"which": "last"}
        return found

    @property
    def statistics(self) -> Facts:
        """Earlier versions exported with population statistics wherever there were any."""
        used = "population" if self.proof.get("population") else "running"
        found: Facts = self.about.get("statistics") or {"used": used}
        return found

    @property
    def checkpoint_folders(self) -> list[Path]:
        """Those of all attempts up to the one that succeeded."""
        attempt = self.folder.parent
        return [attempt.parent / str(number) / "checkpoints" for number in range(1, int(attempt.name) + 1)]


def load_weights(network: nn.Module, spec: JobSpec, data: Data, published: Published, mirror: Mirror) -> Facts:
    """Put the weights that spec.export names into `network`; the facts for the certificate.

    Raises: CheckpointCorruptError if the published weights do not have the digest that was recorded; NoExportError if
    there is no such checkpoint.
    """
    export, used = spec.export, published.statistics["used"]
    if export.checkpoint == published.checkpoint["which"] and export.statistics in ("auto", used):
        weights = published.folder / WEIGHTS_FILE
        if sha256_of(weights) != published.digest:
            text = f"{weights} must have the digest that its certificate names, but it has another"
            raise CheckpointCorruptError(text)
        network.load_state_dict(load(weights.read_bytes()))
        validation = published.proof.get("validation")
        facts = {"checkpoint": published.checkpoint, "statistics": published.statistics, "validation": validation}
        return {"again": {"of": published.digest}, **facts}
    checkpoint = find_checkpoint(published.checkpoint_folders, export.checkpoint, mirror)
    network.load_state_dict(weights_of(checkpoints.load(checkpoint.path, mirror), network))
    return {"checkpoint": {"which": export.checkpoint, "step": checkpoint.step}, **_statistics(network, spec, data)}


def _statistics(network: nn.Module, spec: JobSpec, data: Data) -> Facts:
    if spec.export.statistics != "population":
        why = "a later export takes the running ones, unless export.statistics is population"
        return {"statistics": {"used": "running", "why": why}}
    assert spec.data.batch_size is not None  # a built-in task has one
    loader = train_loader(data, global_batch=spec.data.batch_size * spec.resources.workers, seed=spec.seed)
    found = population_statistics(network, loader, spec.statistics.population, torch.device("cpu"))
    used = "running" if found is None else "population"
    return {
        "statistics": {"used": used, "why": "export.statistics says so"},
        "population": as_facts(found) if found else None,
    }


def _read(path: Path) -> Facts:
    """Empty for a file that does not exist: without an export there is no certificate."""
    content: Facts = json.loads(path.read_bytes()) if path.exists() else {}
    return content
