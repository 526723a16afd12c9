"""Trained weights to start from: one source, and how its tensors find their places in the network."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from syncnorm.trainer.contract.spec.values import Name, Part, Steps

TensorName = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f]+$")]
Address = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f]+$")]
ModelUri = Annotated[str, StringConstraints(max_length=400, pattern=r"^models:/[^\x00-\x1f/@]+([/@][^\x00-\x1f/@]+)?$")]


class InitFrom(Part):
    """Trained weights to start from: exactly one of job, model and file, and how their tensors are found in your
    network. They are read once, when the job first starts; a resumed attempt takes its own checkpoint."""

    job: Name | None = None
    """A job of yours that has a checkpoint: its id, or its name where only one of your jobs has it. A name is replaced
    by the id when you submit. Default: none."""
    checkpoint: Literal["best", "last"] | Steps | None = None
    """Which checkpoint of `job`: `last`, `best` (that of train.keep_best), or that of an optimizer step. `last` and
    `best` are those at the moment when this job first starts. Default: null, which is last. Only with job."""
    model: ModelUri | None = None
    """A model of MLflow, such as `models:/digits/3`, `models:/digits@champion` or `models:/m-…`: its weights as they
    were published, not the folded export. Default: none."""
    file: Address | None = None
    """A path that every worker sees, or a URL: safetensors, or a file of torch, of which only tensors and plain values
    are read. Without uploaded code, URLs must lie under SYNCNORM_DATA_URLS. Default: none."""
    key: TensorName | None = None
    """Where the tensors lie in a file of torch, as dotted keys such as `state_dict` or `model.ema`. Default: null, the
    file itself, or the only one of state_dict, model_state_dict, model and module that holds tensors."""
    strip: TensorName | None = None
    """Text that is removed from the beginning of the tensors' names, such as `model.`. Default: null, where `module.`
    and `_orig_mod.` of wrappers, and `network.` of our checkpoints, are removed if the names fit only without."""
    rename: Annotated[dict[TensorName, TensorName], Field(max_length=256)] = {}
    """New names by old ones, after `strip`: of a tensor, of a module with all below it, or globs whose stars are kept,
    such as `{"encoder.*": "backbone.*"}`. The first match counts. Default: none."""
    drop: Annotated[list[TensorName], Field(max_length=256)] = []
    """Globs over names after `rename`, such as `fc.*`: tensors that are not taken, and places in your network that keep
    their initial values. For a head with another number of classes. Default: none."""
    strict: bool = True
    """Whether every tensor must have a place of its shape, and every place its tensor, apart from `drop` and from what
    another kind of normalization has or lacks. With false, what does not fit is left out. Default: true, because a
    misspelt name would otherwise train from nothing."""

    @model_validator(mode="after")
    def _one_source(self) -> InitFrom:
        given = [name for name in ("job", "model", "file") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"init_from needs exactly one of job, model and file, got {', '.join(given) or 'none'}")
        if self.checkpoint is not None and self.job is None:
            raise ValueError("checkpoint is for init_from.job; leave it out")
        return self

    @model_validator(mode="after")
    def _stars_of_renames(self) -> InitFrom:
        for old, new in self.rename.items():
            if old.count("*") != new.count("*"):
                raise ValueError(f"rename must keep each star of the old name, got {old!r}: {new!r}")
        return self

    @property
    def field(self) -> str:
        """The spec path of its source."""
        return next(f"model.init_from.{name}" for name in ("job", "model", "file") if getattr(self, name) is not None)

    def renamed(self, name: str) -> str:
        """`name` by the first entry of `rename` that matches, which is for a tensor, a module or a glob."""
        for old, new in self.rename.items():
            if "*" in old:
                if found := re.fullmatch("(.*)".join(map(re.escape, old.split("*"))), name):
                    return _filled(new, found.groups())
            elif name == old or name.startswith(f"{old}."):
                return f"{new}{name[len(old) :]}"
        return name


def _filled(glob: str, parts: tuple[str, ...]) -> str:
    first, *rest = glob.split("*")
    return first + "".join(part + text for part, text in zip(parts, rest, strict=True))
