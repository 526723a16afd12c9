"""Weights that a job starts from: what its workers may read, and what became of every tensor. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from syncnorm.trainer.contract.bounds import Message as Text
from syncnorm.trainer.contract.text import counted, name_some


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class KnownCheckpoint(_Record):
    """A checkpoint as its job reported it. digest: SHA-256 of its manifest."""

    step: int
    path: str
    digest: str


class WeightAccess(_Record):
    """What the workers of a job may start from, as its service says.

    checkpoints: those of the job in model.init_from.job, newest first. urls: prefixes that model.init_from.file may lie
    under; None: any. private: folders of the service, whose files are read by the names of jobs and models alone.
    """

    checkpoints: list[KnownCheckpoint] = []
    urls: list[str] | None = None
    private: list[str] = []


class WeightOrigin(_Record):
    """Where weights came from."""

    source: str
    """In words, such as `job job_… step 230`."""
    digest: str
    """`sha256:` and the digest of the file as it was read; of a checkpoint, that of its manifest."""
    key: str | None = None
    """Where the tensors lay in a file of torch; null: it held nothing else."""
    is_average_with_other_statistics: bool = False
    """Whether they are averaged weights with the running statistics of training, as in a checkpoint from the middle of
    an epoch."""


class PlacedTensor(_Record):
    """A tensor of the source or a place in the network."""

    name: str
    """Its name in your network; of a dropped one, in the source."""
    shape: list[int]
    """Its shape."""
    why: Text = ""
    """Why it was dropped or left; of a loaded one, its name in the source where that is another."""


class LoadedWeights(_Record):
    """What became of every tensor of model.init_from, and of every place in the network."""

    origin: WeightOrigin
    """Where the weights came from."""
    loaded: list[PlacedTensor]
    """Tensors that are in your network now."""
    dropped: list[PlacedTensor]
    """Tensors of the source that are not taken."""
    left: list[PlacedTensor]
    """Places of your network that keep their initial values."""

    def summary(self) -> str:
        """In a sentence, for logs."""
        parts = [f"{counted(len(self.loaded), 'tensor')} loaded from {self.origin.source}"]
        for what, tensors in (("dropped", self.dropped), ("left at their initial values", self.left)):
            if tensors:
                parts.append(f"{len(tensors)} {what}: {shown(tensors)}")
        return "; ".join(parts)


def shown(tensors: Sequence[PlacedTensor], most: int = 4) -> str:
    """`fc.weight (10, 64), fc.bias (10)` and how many more."""
    return name_some([f"{one.name} ({', '.join(map(str, one.shape))})" for one in tensors], most)
