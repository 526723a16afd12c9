"""The weights that a later export is made from: those that the job published, or those of one of its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import nn

from syncnorm.trainer.contract.failure import ExportReason
from syncnorm.trainer.contract.spec import JobSpec
from syncnorm.trainer.errors import CheckpointCorruptError, NoExportError
from syncnorm.trainer.export import checkpoint_choice
from syncnorm.trainer.export.certification import CERTIFICATE_FILE
from syncnorm.trainer.export.forward_inputs import Unclear
from syncnorm.trainer.export.statistics.population import as_facts, population_of_module, population_statistics
from syncnorm.trainer.export.weights import DESCRIPTION_FILE, WEIGHTS_FILE
from syncnorm.trainer.storage.atomic_files import sha256_of
from syncnorm.trainer.storage.sync import Mirror
from syncnorm.trainer.training.task_module import network_of
from syncnorm.trainer.worker.module_and_data import Assembly

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
    def left_out(self) -> list[str]:
        """Entries of the state_dict that are no tensors, and so not among the weights."""
        found: list[str] = self.about.get("weights", {}).get("left_out", [])
        return found

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
    def windows(self) -> Facts:
        """What windows change for the weights, which do not change."""
        found = self.proof.get("windows")
        return {"windows": found} if found else {}

    @property
    def lineage(self) -> Facts:
        """What weights the job started from."""
        found = self.proof.get("init_from") or self.about.get("init_from")
        return {"init_from": found} if found else {}

    @property
    def checkpoint_folders(self) -> list[Path]:
        """Those of all attempts up to the one that succeeded."""
        attempt = self.folder.parent
        return [attempt.parent / str(number) / "checkpoints" for number in range(1, int(attempt.name) + 1)]


def load_weights(
    assembly: Assembly, training: Iterable[Any], spec: JobSpec, published: Published, mirror: Mirror
) -> Facts:
    """Put the weights that spec.export names into the module; the facts for the certificate.

    training: its training batches. Raises: CheckpointCorruptError if the published weights do not have the digest that
    was recorded; NoExportError if there is no such checkpoint, or no way to the statistics.
    """
    export, used = spec.export, published.statistics["used"]
    if export.checkpoint == published.checkpoint["which"] and export.statistics in ("auto", used):
        _load_published(network_of(assembly.module), published)
        validation = published.proof.get("validation")
        facts = {"checkpoint": published.checkpoint, "statistics": published.statistics, "validation": validation}
        return {
            "again": {"of": published.digest},
            **facts,
            **_as_fact(published.about.get("average")),
            **published.windows,
            **published.lineage,
        }
    folders, own = published.checkpoint_folders, spec.has_own_code
    checkpoint = checkpoint_choice.find_checkpoint(folders, export.checkpoint, mirror, has_own_code=own)
    average = checkpoint_choice.load_weights(assembly.module, checkpoint, mirror, has_own_code=own)
    about = {"which": export.checkpoint, "step": checkpoint.step}
    facts = {"checkpoint": about, **published.lineage, **_as_fact(average)}
    return facts | _statistics(assembly, training, spec, average)


def _as_fact(average: Mapping[str, Any] | None) -> Facts:
    return {} if average is None else {"average": average}


def _load_published(network: nn.Module, published: Published) -> None:
    weights = published.folder / WEIGHTS_FILE
    if sha256_of(weights) != published.digest:
        raise CheckpointCorruptError(f"{weights} must have the digest that its certificate names, but it has another")
    fresh = network.state_dict()
    network.load_state_dict({**{name: fresh[name] for name in published.left_out}, **load(weights.read_bytes())})


def _statistics(assembly: Assembly, training: Iterable[Any], spec: JobSpec, average: Mapping[str, Any] | None) -> Facts:
    if average is not None and (recomputed := average["statistics"]) is not None:
        why = f"recomputed for the averaged weights over {recomputed.get('samples', 0)} samples"
        return {"statistics": {"used": "population" if recomputed else "running", "why": why}}
    if average is None and spec.export.statistics != "population":
        why = "a later export takes the running ones, unless export.statistics is population"
        return {"statistics": {"used": "running", "why": why}}
    network, estimator = network_of(assembly.module), spec.statistics.population
    if assembly.task_data is not None:
        found = population_statistics(network, assembly.task_data.loaders.population, estimator, torch.device("cpu"))
    else:
        of_module = population_of_module(network, training, estimator)
        if isinstance(of_module, Unclear):
            raise NoExportError(ExportReason.NOT_EXPORTABLE, f"export.statistics: {of_module.reason}")
        found = of_module
    used = "running" if found is None else "population"
    why = "export.statistics says so" if average is None else "recomputed for the averaged weights"
    return {
        "statistics": {"used": used, "why": why},
        "population": as_facts(found) if found else None,
    }


def _read(path: Path) -> Facts:
    """Empty for a file that does not exist: without an export there is no certificate."""
    content: Facts = json.loads(path.read_bytes()) if path.exists() else {}
    return content
