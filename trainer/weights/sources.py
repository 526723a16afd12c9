"""Reads what model.init_from names into one safetensors file: a checkpoint of a job, a model of MLflow, a file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from syncnorm.trainer.contract.initial_weights import KnownCheckpoint, WeightAccess, WeightOrigin
from syncnorm.trainer.contract.spec import InitFrom
from syncnorm.trainer.errors import CheckpointCorruptError
from syncnorm.trainer.export.checkpoint_choice import best_step
from syncnorm.trainer.storage.atomic_files import sha256_of
from syncnorm.trainer.storage.storage import is_url
from syncnorm.trainer.storage.sync import workplace
from syncnorm.trainer.training import checkpoints
from syncnorm.trainer.training.averaging.averaged_weights import AVERAGE
from syncnorm.trainer.training.checkpoints import STATE
from syncnorm.trainer.weights.download import download
from syncnorm.trainer.weights.mlflow_models import fetch_model
from syncnorm.trainer.weights.torch_files import as_safetensors, load_plain, require_file

logger = logging.getLogger(__name__)


def read_source(how: InitFrom, access: WeightAccess, mlflow_uri: str, target: Path) -> WeightOrigin:
    """Write the tensors of the source to `target`, whole or not at all.

    Raises: ValueError naming the field, and the tensor where one is wrong; StorageError if the storage of a checkpoint
    is unavailable.
    """
    if how.job is not None:
        return _read_job(how, access.checkpoints, target)
    with TemporaryDirectory(prefix="syncnorm-weights-") as folder:
        if how.model is not None:
            model = fetch_model(how.model, mlflow_uri, Path(folder))
            return _convert(model.path, model.about, target, how)
        assert how.file is not None
        return _read_file(how.file, access, Path(folder), target, how)


def _read_file(named: str, access: WeightAccess, folder: Path, target: Path, how: InitFrom) -> WeightOrigin:
    if is_url(named):
        path = folder / (named.rstrip("/").rpartition("/")[2][-80:] or "weights")
        download(named, path, how.field, access.urls)
    else:
        path = Path(named).expanduser()
        _require_public(path, access.private)
    require_file(path, how.field)
    return _convert(path, f"file {named}", target, how)


def _require_public(path: Path, private: Sequence[str]) -> None:
    """Files of other jobs are read by the name of the job, so that their owner is asked. Links are followed."""
    if any(path.resolve().is_relative_to(Path(folder).resolve()) for folder in private):
        raise ValueError(
            f"model.init_from.file must lie outside the service's own folders, got {path}. Use model.init_from.job or "
            "model to start from weights of a job."
        )


def _convert(path: Path, about: str, target: Path, how: InitFrom) -> WeightOrigin:
    digest = sha256_of(path)
    key = as_safetensors(path, target, how.field, how.key)
    return WeightOrigin(source=about, digest=f"sha256:{digest}", key=key)


def _read_job(how: InitFrom, known: Sequence[KnownCheckpoint], target: Path) -> WeightOrigin:
    """From a checkpoint that has the digest that its job reported."""
    which = how.checkpoint or "last"
    wanted = [one for one in known if one.step == which] if isinstance(which, int) else list(known)
    if which == "best":
        wanted = _best(how, known)
    problem = f"has no checkpoint of step {which} any more" if isinstance(which, int) else "has no checkpoint any more"
    for one in wanted:
        try:
            return _read_checkpoint(how, one, target)
        except CheckpointCorruptError as error:  # deleted or replaced meanwhile; of the others, the next one will do
            problem = f"has no checkpoint that can be read: {error}"
            logger.warning("model.init_from.job: skipping a checkpoint: %s", error)
    raise ValueError(f"model.init_from.checkpoint: job {how.job} {problem}. Name another one.")


def _best(how: InitFrom, known: Sequence[KnownCheckpoint]) -> list[KnownCheckpoint]:
    """As the newest checkpoint that can be read has noted it."""
    for one in known:
        try:
            with ExitStack() as stack:
                step = best_step(_state(one, how, stack))
        except CheckpointCorruptError:
            continue
        if step is None:
            break
        return [best for best in known if best.step == step]
    raise ValueError(
        f"model.init_from.checkpoint: job {how.job} has no best checkpoint, since no epoch with a score wrote one. "
        "Use last, or a step."
    )


def _read_checkpoint(how: InitFrom, one: KnownCheckpoint, target: Path) -> WeightOrigin:
    with ExitStack() as stack:
        root, mirror = stack.enter_context(workplace(one.path))
        _require_digest(checkpoints.fetch(root, mirror), one)
        key = as_safetensors(root / STATE, target, how.field, how.key or "state_dict")
        average = dict(load_plain(root / STATE, how.field)).get(AVERAGE) or {}
    return WeightOrigin(
        source=f"job {how.job} step {one.step}",
        digest=f"sha256:{one.digest}",
        key=key,
        is_average_with_other_statistics=key == "state_dict"
        and average.get("updates", 0) > 0
        and average.get("statistics") is None,
    )


def _state(one: KnownCheckpoint, how: InitFrom, stack: ExitStack) -> dict[str, object]:
    root, mirror = stack.enter_context(workplace(one.path))
    _require_digest(checkpoints.fetch(root, mirror), one)
    return dict(load_plain(root / STATE, how.field))


def _require_digest(found: checkpoints.Checkpoint, known: KnownCheckpoint) -> None:
    if found.digest != known.digest:
        raise CheckpointCorruptError(f"checkpoint {known.path} must have the digest that its job reported")
